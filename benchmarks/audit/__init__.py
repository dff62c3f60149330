"""The audit of the built site: what Lighthouse says of it."""
