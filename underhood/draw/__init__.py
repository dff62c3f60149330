"""Pictures drawn from traces: diagrams, bytes explained, timings, tables."""
