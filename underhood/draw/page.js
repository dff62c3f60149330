// Makes pictures handier: choosing an arrow opens its message, keys step through, channels can be
// switched off, the drawing becomes a table, everything can be downloaded. Whatever it shows stands
// in the page already, as a list, a table and packed bytes. It is written into every output, so it
// must not mind being run many times: a picture is brought to life once.
(() => {
const build = (tag, properties = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value; else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
};
const target = (link) => link.getAttribute('xlink:href') ?? '';
const all = (root, selector) => [...root.querySelectorAll(selector)];
const thin = (count) => count === 1 ? '1 byte' : `${String(count).replace(/\B(?=(\d{3})+$)/g, '\u202f')} bytes`;
const SHOWN = 192;

// ---- bytes

const inflate = async (text) => {
  const packed = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('deflate'));
  return new Uint8Array(await new Response(stream).arrayBuffer());
};
const asHex = (bytes) => Array.from(bytes.subarray(0, SHOWN), (byte) => byte.toString(16).padStart(2, '0')).join(' ') + (bytes.length > SHOWN ? ' …' : '');
const asText = (bytes) => Array.from(bytes.subarray(0, SHOWN), (byte) => byte > 31 && byte < 127 ? String.fromCharCode(byte) : '·').join('');

// The same rows as fields.py sets.
const row = (kinds, node, bytes, start, level) => {
  const [kind, length, value = '', inner = []] = node;
  const [label, sentence, link] = kinds[kind];
  const part = bytes.subarray(start, start + length);
  const name = build('span', {className: 'uh-fl'}, label);
  if (value) name.append(' ', build('b', {}, value));
  const about = build('p', {}, sentence);
  if (link) about.append(' ', build('a', {href: link}, 'Specification'));
  about.append(` ${thin(length)}, from byte ${start}.`);
  const found = build('details', {className: inner.length ? 'uh-f uh-in' : 'uh-f', open: inner.length > 0 && level > 0},
    build('summary', {}, name, build('code', {className: 'uh-fh'}, asHex(part)), build('code', {className: 'uh-ft'}, asText(part))),
    about);
  let offset = start;
  for (const child of inner) {
    found.append(row(kinds, child, bytes, offset, level - 1));
    offset += child[1];
  }
  return found;
};

// ---- one picture

const enliven = (figure) => {
  figure.dataset.live = '1';
  const drawing = figure.querySelector('.uh-stage > svg');
  const source = figure.querySelector('script[type="application/json"]');
  const data = source ? JSON.parse(source.textContent) : null;
  const list = all(figure, '.uh-message');
  if (!list.length && !drawing) return;

  const arrows = all(figure, 'svg [data-message]');
  const order = list.length ? list.map((entry) => entry.dataset.number) : arrows.map((arrow) => arrow.dataset.message);
  const entries = new Map(list.map((entry) => [entry.dataset.number, entry]));
  const arrowOf = new Map();
  for (const arrow of arrows) {
    for (const number of [arrow.dataset.message, ...(arrow.dataset.folded || '').split(' ')]) if (number) arrowOf.set(number, arrow);
  }
  // With a script, an address leads to the arrow instead of the list.
  for (const [number, arrow] of arrowOf) {
    const address = `${figure.id}-m${number}`;
    document.getElementById(address)?.removeAttribute('id');
    if (arrow.dataset.message === number) arrow.id = address;
  }
  const hidden = new Set();
  const shown = () => order.filter((number) => !hidden.has(channelOf(number)));
  const channelOf = (number) => entries.get(number)?.dataset.channel ?? arrowOf.get(number)?.getAttribute('class').match(/u-m u-(\w+)/)?.[1];
  let unpacked;
  const bytes = () => unpacked ??= inflate(data.data);
  let chosen = null;
  let tab = 0;

  // -- the message beside the drawing

  const panel = build('section', {className: 'uh-panel', hidden: true});
  panel.setAttribute('aria-label', 'Chosen message');
  const body = figure.querySelector('.uh-body');
  (body ?? list[0]?.parentElement)?.append(panel);

  const bytesOf = async (number) => {
    const [places, tree] = data.messages[number];
    const file = await bytes();
    const found = new Uint8Array(places.reduce((sum, [, length]) => sum + length, 0));
    let at = 0;
    for (const [start, length] of places) {
      found.set(file.subarray(start, start + length), at);
      at += length;
    }
    return row(data.kinds, tree, found, 0, 1);
  };

  const fill = (number) => {
    const entry = entries.get(number);
    const sentence = entry ? entry.querySelector('summary').textContent : arrowOf.get(number).querySelector('title').textContent;
    const visible = shown();
    const place = visible.indexOf(number);
    const step = (by, name, text) => build('button', {type: 'button', className: 'uh-step', title: name, ariaLabel: name, disabled: !visible[place + by], onclick: () => { choose(visible[place + by]); panel.querySelector(`[title="${name}"]`).focus(); }}, text);
    const heading = build('p', {className: 'uh-said', tabIndex: -1}, sentence);
    panel.className = `uh-panel u-${channelOf(number)}`;
    panel.replaceChildren(
      build('div', {className: 'uh-bar'},
        build('a', {className: 'uh-address', href: `#${figure.id}-m${number}`, title: 'Address of this message'}, `Message ${number}`),
        build('span', {className: 'uh-count'}, `${place + 1} of ${visible.length}`),
        step(-1, 'Previous message', '‹'), step(1, 'Next message', '›'),
        build('button', {type: 'button', className: 'uh-step', title: 'Close', ariaLabel: 'Close', onclick: close}, '×')),
      heading);
    if (!entry) return heading;
    const parts = all(entry, 'dt').map((term) => [term.textContent, () => term.nextElementSibling.firstElementChild.cloneNode(true)]);
    const small = parts.filter(([name]) => name === 'size' || name === 'signature');
    heading.append(build('span', {className: 'uh-facts'}, small.map(([name, make]) => name === 'size' ? make().textContent : `${name} ${make().textContent}`).join(' · ')));
    const views = parts.filter(([name]) => name !== 'size' && name !== 'signature');
    if (data?.messages[number]) views.push(['bytes', () => bytesOf(number)]);
    if (tab >= views.length || tab < 0) tab = 0;
    const view = build('div', {className: 'uh-view', tabIndex: 0, role: 'tabpanel'});
    const tabs = build('div', {className: 'uh-tabs', role: 'tablist'});
    const show = async (n) => {
      tab = n;
      all(tabs, 'button').forEach((button, m) => {
        button.setAttribute('aria-selected', m === n);
        button.tabIndex = m === n ? 0 : -1;
      });
      view.setAttribute('aria-label', views[n][0]);
      const made = views[n][1]();
      const node = made instanceof Promise ? await made.catch(() => build('p', {}, 'This browser cannot unpack the bytes; the list below has the message.')) : made;
      if (tab === n && chosen === number) view.replaceChildren(node);
    };
    views.forEach(([name], n) => tabs.append(build('button', {type: 'button', role: 'tab', onclick: () => show(n)}, name)));
    tabs.onkeydown = (event) => {
      const by = {ArrowRight: 1, ArrowLeft: -1}[event.key];
      if (!by) return;
      event.preventDefault();
      event.stopPropagation();
      const next = (tab + by + views.length) % views.length;
      show(next);
      tabs.children[next].focus();
    };
    panel.append(tabs, view);
    show(tab);
    return heading;
  };

  // In a program that shows notebooks the address bar is not ours.
  const isPage = !document.querySelector('[data-jp-theme-name], [data-vscode-theme-kind]') && window.parent === window;
  const choose = (number, {address = true, focus = ''} = {}) => {
    if (!number) return;
    arrowOf.get(chosen)?.removeAttribute('aria-current');
    chosen = number;
    const arrow = arrowOf.get(number);
    arrow?.setAttribute('aria-current', 'true');
    rove(arrow);
    const stage = figure.querySelector('.uh-stage');
    figure.classList.toggle('uh-beside', !!stage && body.clientWidth - stage.clientWidth > 320);
    panel.hidden = false;
    const heading = fill(number);
    if (address && isPage) history.replaceState(history.state, '', `#${figure.id}-m${number}`);
    if (focus === 'arrow') arrow?.focus({preventScroll: true});
    if (focus === 'panel') heading.focus({preventScroll: true});
    // At the edge of the screen the message may have opened out of sight.
    if (focus) for (const part of [arrow, heading]) part?.scrollIntoView({block: 'nearest', inline: 'nearest'});
  };
  const close = () => {
    const arrow = arrowOf.get(chosen);
    arrow?.removeAttribute('aria-current');
    chosen = null;
    panel.hidden = true;
    arrow?.focus({preventScroll: true});
    if (isPage && location.hash.startsWith(`#${figure.id}-m`)) history.replaceState(history.state, '', location.pathname + location.search);
  };
  panel.onkeydown = (event) => {
    if (event.key === 'Escape') { event.preventDefault(); event.stopPropagation(); close(); }
  };

  // -- arrows: one stop for the Tab key, stepping with the arrow keys

  // Some lead to another page of a book instead of their message.
  const leads = (arrow) => isPage && !/^(#|$)/.test(target(arrow));
  const rove = (arrow) => {
    if (!arrow) return;
    for (const other of arrows) other.setAttribute('tabindex', other === arrow ? '0' : '-1');
  };
  rove(arrows[0]);
  drawing?.addEventListener('click', (event) => {
    const arrow = event.target.closest('[data-message]');
    if (!arrow || event.ctrlKey || event.metaKey || event.shiftKey || leads(arrow)) return;
    event.preventDefault();
    // A keyboard's Enter comes as a click without a place.
    choose(arrow.dataset.message, {focus: event.detail === 0 ? 'panel' : 'arrow'});
  });
  drawing?.addEventListener('keydown', (event) => {
    const arrow = event.target.closest('[data-message]');
    if (!arrow || event.ctrlKey || event.metaKey || event.altKey) return;
    const visible = arrows.filter((other) => other.getAttribute('aria-hidden') !== 'true');
    const place = visible.indexOf(arrow);
    const next = {ArrowDown: visible[place + 1], ArrowRight: visible[place + 1], ArrowUp: visible[place - 1], ArrowLeft: visible[place - 1], Home: visible[0], End: visible.at(-1)}[event.key];
    if (event.key === 'Escape' && chosen) close();
    else if (event.key === ' ') choose(arrow.dataset.message, {focus: 'panel'});
    else if (!next && !/^Arrow|^Home$|^End$/.test(event.key)) return;
    else if (next && chosen) choose(next.dataset.message, {focus: 'arrow'});
    else if (next) { rove(next); next.focus({preventScroll: true}); next.scrollIntoView({block: 'nearest', inline: 'nearest'}); }
    event.preventDefault();
    event.stopPropagation();
  });

  // -- channels

  const channels = all(figure, '.uh-key [data-channel]');
  if (channels.length > 1) {
    for (const item of channels) {
      const name = item.dataset.channel;
      const button = build('button', {type: 'button', ariaPressed: 'true', title: `Show or hide ${name}`}, ...item.childNodes);
      button.onclick = () => {
        if (hidden.has(name)) hidden.delete(name); else hidden.add(name);
        button.setAttribute('aria-pressed', !hidden.has(name));
        for (const arrow of arrows) {
          const off = hidden.has(channelOf(arrow.dataset.message));
          arrow.classList.toggle('uh-off', off);
          if (off) arrow.setAttribute('aria-hidden', 'true'); else arrow.removeAttribute('aria-hidden');
        }
        for (const other of all(figure, 'tr[data-channel], .uh-message')) other.hidden = hidden.has(other.dataset.channel);
        const first = arrows.find((arrow) => !arrow.hasAttribute('aria-hidden'));
        if (first) rove(first); else for (const arrow of arrows) arrow.setAttribute('tabindex', '-1');
        if (chosen && hidden.has(channelOf(chosen))) { panel.hidden = true; chosen = null; } else if (chosen) fill(chosen);
      };
      item.append(button);
    }
  }

  // -- table and downloads

  const name = (suffix) => `${figure.id}.${suffix}`;
  const save = (blob, file) => {
    const link = build('a', {href: URL.createObjectURL(blob), download: file});
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };
  const LOOKS = ['fill', 'stroke', 'stroke-width', 'stroke-dasharray', 'stroke-linejoin', 'font-family', 'font-size', 'font-weight', 'font-style', 'text-anchor', 'opacity'];
  const standalone = () => {
    const copy = drawing.cloneNode(true);
    const from = all(drawing, '*');
    all(copy, '*').forEach((element, n) => {
      const look = getComputedStyle(from[n]);
      if (/^(path|rect|text|tspan|g|circle)$/.test(element.tagName)) for (const what of LOOKS) element.style.setProperty(what, look.getPropertyValue(what));
      element.removeAttribute('xlink:href');
      element.removeAttribute('tabindex');
    });
    copy.querySelector('.u-heads')?.removeAttribute('style');
    copy.style.background = getComputedStyle(figure).backgroundColor;
    return new XMLSerializer().serializeToString(copy);
  };
  const saveSvg = () => save(new Blob([standalone()], {type: 'image/svg+xml'}), name('svg'));
  const savePng = async () => {
    const image = new Image();
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(standalone())}`;
    await image.decode();
    const box = drawing.viewBox.baseVal;
    // Canvases end at about 16,000 pixels.
    const scale = Math.min(2, 16000 / box.height, 16000 / box.width);
    const canvas = build('canvas', {width: box.width * scale, height: box.height * scale});
    const context = canvas.getContext('2d');
    context.scale(scale, scale);
    context.fillStyle = getComputedStyle(figure).backgroundColor;
    context.fillRect(0, 0, box.width, box.height);
    context.drawImage(image, 0, 0, box.width, box.height);
    canvas.toBlob((blob) => save(blob, name('png')));
  };
  const savePcapng = async () => save(new Blob([(await bytes()).subarray(0, data.file)], {type: 'application/octet-stream'}), `${data.name}.pcapng`);

  if (drawing) {
    const table = figure.querySelector('.uh-table');
    const tools = build('div', {className: 'uh-tools'});
    const tool = (text, title, onclick) => { const made = build('button', {type: 'button', title, onclick}, text); tools.append(made); return made; };
    if (table) {
      const toggle = tool('Table', 'Show as a table', () => {
        const on = toggle.getAttribute('aria-pressed') !== 'true';
        toggle.setAttribute('aria-pressed', on);
        figure.classList.toggle('uh-tabled', on);
        table.open = on;
      });
      toggle.setAttribute('aria-pressed', 'false');
    }
    tool('SVG', 'Download the drawing as SVG', saveSvg);
    tool('PNG', 'Download the drawing as PNG', savePng);
    if (data?.file) tool('pcapng', `Download ${data.extent}, for Wireshark`, savePcapng);
    figure.querySelector('.uh-top').append(tools);
    if (arrows.length) body.before(build('p', {className: 'uh-hint'}, `Choose ${figure.dataset.underhood === 'sequence' ? 'an arrow' : 'a row'} to ${arrows.every(leads) ? 'follow it' : 'open its message'}; the arrow keys step through.`));
  }

  // -- what reaches over more than a screen keeps its heads in sight

  const heads = drawing?.querySelector('.u-heads');
  if (heads && drawing.viewBox.baseVal.height > 700) {
    let waiting = false;
    const place = () => {
      waiting = false;
      const {top: above, bottom: below} = drawing.parentElement.getBoundingClientRect();
      if (below < 0 || above > innerHeight) return;
      const box = drawing.getBoundingClientRect();
      const top = parseFloat(getComputedStyle(document.documentElement).scrollPaddingTop) || 0;
      const scale = box.height / drawing.viewBox.baseVal.height || 1;
      const by = Math.min(Math.max(top - box.top, 0) / scale, drawing.viewBox.baseVal.height - 90);
      heads.setAttribute('transform', by > 0 ? `translate(0 ${by.toFixed(1)})` : '');
      heads.classList.toggle('uh-stuck', by > 0);
    };
    addEventListener('scroll', () => { if (!waiting) { waiting = true; requestAnimationFrame(place); } }, {capture: true, passive: true});
    addEventListener('beforeprint', () => { heads.removeAttribute('transform'); heads.classList.remove('uh-stuck'); });
  }

  // -- addresses

  const follow = () => {
    const found = location.hash.match(/^#(.+)-m(\d+)$/);
    if (!found || found[1] !== figure.id || !order.includes(found[2])) return;
    choose(found[2], {address: false});
    arrowOf.get(found[2])?.scrollIntoView({block: 'center', inline: 'nearest'});
  };
  addEventListener('hashchange', follow);
  if (isPage) follow();
};

// Two programs may have given out the same address.
const tellApart = (figure) => {
  for (let n = 2, own = figure.id; document.getElementById(figure.id) !== figure; n++) {
    const next = `${own}-again-${n}`;
    for (const inside of all(figure, `[id^="${figure.id}-m"]`)) inside.id = inside.id.replace(figure.id, next);
    for (const link of all(figure, `svg a[*|href^="#${figure.id}-m"]`)) link.setAttribute('xlink:href', target(link).replace(figure.id, next));
    figure.id = next;
  }
};

// Near the screen, and one at a time: a page with many must not keep its reader waiting.
const waiting = [];
const next = () => {
  const figure = waiting.shift();
  if (figure && !figure.dataset.live) enliven(figure);
  if (waiting.length) setTimeout(next);
};
const near = new IntersectionObserver((seen) => {
  for (const {isIntersecting, target: figure} of seen) {
    if (!isIntersecting) continue;
    near.unobserve(figure);
    if (waiting.push(figure) === 1) setTimeout(next);
  }
}, {rootMargin: '100%'});
const pictures = all(document, 'figure.underhood:not([data-live])');
for (const figure of pictures) {
  tellApart(figure);
  near.observe(figure);
}

// What is asked for by its address cannot wait until it is near.
const asked = () => {
  const name = location.hash.slice(1);
  for (const figure of pictures) if (name.startsWith(figure.id) && !figure.dataset.live) enliven(figure);
};
addEventListener('hashchange', asked);
asked();
// Most browsers print what is closed as closed.
addEventListener('beforeprint', () => { for (const table of all(document, '.underhood .uh-table')) table.open = true; });
})();
