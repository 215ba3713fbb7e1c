'use strict';
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const held = id => { const found = document.getElementById(id); return found ? JSON.parse(found.textContent) : null; };
const make = (tag, set = {}, ...inside) => {
  const made = Object.assign(document.createElement(tag), set);
  made.append(...inside);
  return made;
};
const button = (text, act) => {
  const made = make('button', { type: 'button', textContent: text });
  made.addEventListener('click', () => act(made));
  return made;
};

// What is linked to is opened.
const open = () => {
  const there = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!there) return;
  for (let each = there; each; each = each.parentElement) if (each.tagName === 'DETAILS') each.open = true;
  if (there.nextElementSibling?.className === 'found') all('details', there.nextElementSibling)[0].open = true;
};
addEventListener('hashchange', open);
open();
addEventListener('beforeprint', () => all('.found details').forEach(each => { each.open = true; }));

// Tables: sort by a heading, show the rows that hold some words, copy them. Of a long table the first rows are shown,
// for a browser lays out thousands in seconds.
const most = 300;
const value = cell => {
  const text = cell.textContent.trim().replace(/−/g, '-').replace('∞', 'Infinity');
  const number = text === '' ? NaN : Number(/^[+-]?[\d.]+(e-?\d+)?(?= (±|\[))/.exec(text)?.[0] ?? text);
  return isNaN(number) ? text : number;
};
const order = (a, b) => typeof a === typeof b ? (a > b) - (a < b) : typeof a === 'number' ? -1 : 1;
const sortable = table => all('thead th', table).forEach(head => {
  const sort = button('', () => {
    const up = head.getAttribute('aria-sort') !== 'ascending';
    all('th', head.parentNode).forEach(other => other.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
    const keyed = [...table.tBodies[0].rows].map(row => [value(row.cells[head.cellIndex]), row]);
    keyed.sort((a, b) => (up ? 1 : -1) * order(a[0], b[0]));
    table.tBodies[0].append(...keyed.map(each => each[1]));
    table.refresh();
  });
  sort.append(...head.childNodes);
  head.append(sort);
});
const tools = (table, place) => {
  const rows = [...table.tBodies[0].rows], line = make('div', { className: 'tools' }), told = make('span');
  const out = new Set();
  let limit = most;
  told.setAttribute('role', 'status');
  table.refresh = () => {
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      shown += !out.has(row);
      row.hidden = out.has(row) || shown > limit;
    }
    told.textContent = out.size || rows.length > limit ? `${Math.min(shown, limit)} of ${rows.length} rows` : '';
  };
  if (rows.length > 6) {
    const words = make('input', { type: 'search', placeholder: 'filter rows' });
    words.setAttribute('aria-label', 'Filter the rows of this table');
    const texts = [];
    words.addEventListener('input', () => {
      const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
      out.clear();
      rows.forEach((row, i) => {
        texts[i] ??= row.textContent.toLowerCase();
        if (!wanted.every(word => texts[i].includes(word))) out.add(row);
      });
      table.refresh();
    });
    line.append(words);
  }
  line.append(button('Copy', async () => {
    const shown = [...table.rows].filter(row => !out.has(row));
    const text = shown.map(row => [...row.cells].filter(cell => !cell.classList.contains('off'))
      .map(cell => cell.textContent.trim().replace(/\s+/g, ' ')).join('\t')).join('\n');
    try {
      await navigator.clipboard.writeText(text);
      told.textContent = `${shown.length} rows copied`;
    } catch {
      getSelection().selectAllChildren(table);
      told.textContent = 'selected: press Ctrl+C';
    }
  }), told);
  if (rows.length > most) {
    line.append(button('Show all', each => { limit = Infinity; each.remove(); table.refresh(); }));
    table.refresh();
  }
  place.before(line);
};
for (const table of all('main .scroll > table:not(.claims)')) {
  if (!table.tBodies[0] || table.tBodies[0].rows.length < 2 || table.closest('.summary')) continue;
  sortable(table);
  tools(table, table.parentNode);
}

// Arms are shown and hidden everywhere at once: their marks, their columns, their rows.
const chips = document.querySelector('.chips');
const toggled = (label, index, off) => {
  for (const mark of all(`svg [data-series="${index}"]`)) mark.classList.toggle('off', off);
  for (const table of all('table')) {
    const columns = all('thead th', table).filter(head => head.textContent === label).map(head => head.cellIndex);
    const arm = all('thead th', table).find(head => head.textContent === 'arm')?.cellIndex;
    if (!columns.length && arm === undefined) continue;
    for (const row of table.rows) {
      for (const column of columns) row.cells[column]?.classList.toggle('off', off);
      if (arm !== undefined && row.cells[arm]?.textContent === label) row.classList.toggle('off', off);
    }
  }
};
if (chips) {
  chips.hidden = false;
  for (const chip of all('[data-series]', chips)) chip.addEventListener('click', () => {
    const off = chip.getAttribute('aria-pressed') === 'true';
    chip.setAttribute('aria-pressed', String(!off));
    toggled(chip.dataset.label, chip.dataset.series, off);
  });
  all('.seeds', chips).forEach(chip => chip.addEventListener('click', () => {
    const off = chip.getAttribute('aria-pressed') === 'true';
    chip.setAttribute('aria-pressed', String(!off));
    document.body.classList.toggle('no-seeds', off);
  }));
}

// Differences to another baseline, from the numbers of every seed; sums and digits are those of numpy and Python.
const total = numbers => {
  const n = numbers.length;
  if (n < 8) return numbers.reduce((sum, each) => sum + each, -0);
  if (n > 128) {
    const half = (n >> 1) - (n >> 1) % 8;
    return total(numbers.slice(0, half)) + total(numbers.slice(half));
  }
  const r = numbers.slice(0, 8), whole = n - n % 8;
  for (let i = 8; i < whole; i++) r[i % 8] += numbers[i];
  return numbers.slice(whole).reduce((sum, each) => sum + each,
    ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7])));
};
const fixed = (number, places) => {
  const exact = Math.abs(number).toFixed(Math.min(100, places + 60)), cut = exact.length - Math.min(100, places + 60) + places;
  const tie = /^50*$/.test(exact.slice(cut)) && '02468'.includes(exact.slice(0, cut).replace(/\.$/, '').at(-1));
  const sign = number < 0 || Object.is(number, -0) ? '−' : '';
  return sign + (tie ? exact.slice(0, cut).replace(/\.$/, '') : Math.abs(number).toFixed(places));
};
const general = number => {
  if (number === 0) return '0';
  const [mantissa, exponent] = Math.abs(number).toExponential(3).split('e');
  const plain = exponent < -4 || exponent >= 4 ? Number(mantissa) + (Number(exponent) ? `e${Number(exponent)}` : '')
    : String(Number(Math.abs(number).toPrecision(4)));
  return (number < 0 ? '−' : '') + plain.replace('e-', 'e−');
};
const rounded = (number, half) => {
  const places = half > 0 ? 1 - Math.floor(Math.log10(half)) : -1;
  return (number > 0 ? '+' : '') + (places >= 0 && places <= 8 ? fixed(number, places) : general(number));
};
const difference = (ours, theirs, quantiles) => {
  const pairs = ours.map((each, i) => [each, theirs[i]]).filter(each => each[0] !== null && each[1] !== null);
  const gaps = pairs.map(each => each[0] - each[1]), n = gaps.length;
  if (!n) return 'not paired';
  const mean = total(gaps) / n, least = 1e-6 * Math.max(...pairs.flat().map(Math.abs));
  const few = n < ours.length ? ` (n = ${n})` : '';
  if (n < 2) return (Math.abs(mean) <= least ? '0' : (mean > 0 ? '+' : '') + general(mean)) + few;
  const half = quantiles[n - 2] * Math.sqrt(total(gaps.map(gap => (gap - mean) ** 2)) / (n - 1)) / Math.sqrt(n);
  if (Math.max(Math.abs(mean), Math.abs(mean - half), Math.abs(mean + half)) <= least) return '0' + few;
  const [middle, low, high] = [mean, mean - half, mean + half].map(each => rounded(each, (mean + half - (mean - half)) / 2));
  return `${middle} [${low}, ${high}]${few}`;
};
const measures = held('measures'), chosen = document.getElementById('baseline');
if (measures && chosen) {
  chosen.closest('p').hidden = false;
  const table = document.querySelector('.differences table'), rows = [...table.tBodies[0].rows];
  chosen.addEventListener('change', () => {
    const base = chosen.selectedIndex;
    rows.forEach((row, m) => {
      const numbers = measures.values[m];
      measures.arms.forEach((arm, i) => {
        row.cells[i + 1].textContent = i === base ? '–' : difference(numbers[i], numbers[base], measures.t);
      });
    });
    table.caption.textContent = `Paired differences to ${measures.arms[base]}`;
  });
}

// What is under the pointer, or is stepped to with the arrow keys, is said in the numbers of the figure's table.
const tip = make('div', { className: 'tip', hidden: true });
tip.setAttribute('role', 'status');
document.body.append(tip);
const drawn = (tag, set) => {
  const made = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const name in set) made.setAttribute(name, set[name]);
  return made;
};

const ring = drawn('circle', { r: 8, class: 'ring' });
const hide = () => { tip.hidden = true; ring.remove(); };

// Curves are seen more closely: `zoom(a, b)` shows what lies from a to b, in the units of the drawing.
const nice = (low, high) => {
  const rough = (high - low) / 8, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find(each => each * power >= rough) * power, found = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
};
const panelOf = (svg, [table, axes, left, right, low, high]) => {
  const group = svg.querySelector(`[data-axes="${axes}"]`), ticks = all('[data-tick]', group);
  let inner = null, made = [];
  const panel = { table, left, right, a: left, b: right, at: x => left + (x - panel.a) * (right - left) / (panel.b - panel.a) };
  const prepare = () => {
    const id = `${svg.parentNode.parentNode.id || 'card'}-${axes}-${Math.random().toString(36).slice(2)}`;
    const clip = drawn('clipPath', { id }), outer = drawn('g', { 'clip-path': `url(#${id})` });
    clip.append(drawn('rect', { x: left, y: 0, width: right - left, height: svg.viewBox.baseVal.height }));
    inner = drawn('g', { class: 'zoomed' });
    const series = [...group.children].filter(each => each.dataset.series !== undefined);
    series[0].before(outer);
    outer.append(clip, inner);
    inner.append(...series);
    all('[clip-path]', inner).forEach(each => each.removeAttribute('clip-path'));
  };
  panel.zoom = (a, b) => {
    [panel.a, panel.b] = [Math.max(left, a), Math.min(right, b)];
    if (!inner) prepare();
    const k = (right - left) / (panel.b - panel.a), whole = k < 1.0001;
    inner.setAttribute('transform', `matrix(${k} 0 0 1 ${left - panel.a * k} 0)`);
    for (const mark of all('use', inner).filter(each => !each.closest('[data-band]'))) mark.setAttribute('transform', `matrix(${1 / k} 0 0 1 ${mark.x.baseVal.value * (1 - 1 / k)} 0)`);
    made.forEach(each => each.remove());
    ticks.forEach(each => each.classList.toggle('off', !whole));
    const number = x => low + (x - left) / (right - left) * (high - low);
    made = whole || !ticks[0] ? [] : nice(number(panel.a), number(panel.b)).map(value => {
      const tick = ticks[0].cloneNode(true), own = tick.querySelector('use').x.baseVal.value;
      const x = panel.at(left + (value - low) / (high - low) * (right - left));
      tick.classList.remove('off');
      tick.setAttribute('transform', `translate(${x - own} 0)`);
      tick.querySelector('text').textContent = String(value).replace('-', '−');
      ticks[0].parentNode.append(tick);
      return tick;
    });
  };
  return panel;
};
for (const card of all('.card.chart')) {
  const figure = card.closest('figure');
  const tables = all('details table', figure).map(table => ({ head: table.tHead.rows[0].cells, rows: [...table.tBodies[0].rows],
    note: /n = [\d to]+ seeds/.exec(table.closest('.scroll').nextElementSibling?.textContent ?? '')?.[0] }));
  let at = -1, known = new Map(), panels = new Map(), from = null;
  const seen = () => all('svg', card).find(svg => svg.clientWidth || svg.getBoundingClientRect().width);
  const places = svg => {
    if (!known.has(svg)) known.set(svg, JSON.parse(svg?.dataset.places ?? '[]').sort((a, b) => a[0] - b[0] || a[2] - b[2] || a[1] - b[1]));
    const zoomed = panelsOf(svg);
    return known.get(svg).filter(place => !tables[place[0]]?.head[place[2]]?.classList.contains('off')).map(place => {
      const panel = zoomed.find(each => each.table === place[0]);
      return panel ? [...place.slice(0, 3), panel.at(place[3]), place[4]] : place;
    }).filter(place => zoomed.every(each => each.table !== place[0] || place[3] >= each.left - 1 && place[3] <= each.right + 1));
  };
  const panelsOf = svg => {
    if (!panels.has(svg)) panels.set(svg, JSON.parse(svg?.dataset.panels ?? '[]').map(each => panelOf(svg, each)));
    return panels.get(svg);
  };
  const placed = (svg, event) => {
    const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  };
  if (panelsOf(seen()).length) figure.querySelector('figcaption').after(make('p', { className: 'note hint',
    textContent: 'Drag across curves, or press + and −, to see them closely; a double click, or 0, shows all.' }));
  // Panels stand beside and below each other: the one under a place is the one whose marks are nearest to it.
  const panelAt = (svg, x, y) => panelsOf(svg).filter(each => x > each.left - 8 && x < each.right + 8).map(each => [Math.min(
    ...places(svg).filter(place => place[0] === each.table).map(place => Math.abs(place[4] - y))), each])
    .sort((a, b) => a[0] - b[0])[0]?.[1];
  const band = drawn('rect', { class: 'band', y: 0 });
  card.addEventListener('mousedown', event => {
    const svg = seen(), [x, y] = svg ? placed(svg, event) : [], panel = svg && panelAt(svg, x, y);
    if (!panel) return;
    from = [panel, x];
    event.preventDefault();
    card.focus({ preventScroll: true });
  });
  addEventListener('mouseup', event => {
    if (!from) return;
    const [panel, x] = from, ends = [x, placed(seen(), event)[0]].sort((a, b) => a - b);
    const back = each => panel.a + (each - panel.left) * (panel.b - panel.a) / (panel.right - panel.left);
    from = null;
    band.remove();
    if (ends[1] - ends[0] > 8) panel.zoom(...ends.map(back));
  });
  card.addEventListener('dblclick', () => panelsOf(seen()).forEach(each => each.zoom(each.left, each.right)));
  const say = (svg, [t, r, c, x, y]) => {
    const { head, rows, note } = tables[t], row = rows[r], name = head[c].textContent;
    const where = [head[0].textContent, row.cells[0].textContent].filter(each => each && each !== 'x').join(' ');
    tip.textContent = `${name ? `${name}: ` : ''}${row.cells[c].textContent} · ${where}${note ? ` · ${note}` : ''}`;
    const box = svg.getBoundingClientRect(), scale = box.width / svg.viewBox.baseVal.width;
    ring.setAttribute('cx', x);
    ring.setAttribute('cy', y);
    svg.append(ring);
    tip.hidden = false;
    const left = box.left + x * scale + 12, wide = tip.offsetWidth;
    tip.style.left = `${scrollX + Math.max(4, Math.min(left, document.documentElement.clientWidth - wide - 4))}px`;
    tip.style.top = `${scrollY + box.top + y * scale + 12}px`;
  };
  card.addEventListener('pointermove', event => {
    const svg = seen();
    if (!svg) return;
    const [x, y] = placed(svg, event);
    if (from) {
      for (const [name, to] of [['x', Math.min(x, from[1])], ['width', Math.abs(x - from[1])], ['height', svg.viewBox.baseVal.height]])
        band.setAttribute(name, to);
      svg.append(band);
    }
    let best = null, least = 14 ** 2;
    for (const place of places(svg)) {
      const far = (place[3] - x) ** 2 + (place[4] - y) ** 2;
      if (far < least) [best, least] = [place, far];
    }
    if (best) say(svg, best); else hide();
  });
  card.addEventListener('pointerleave', hide);
  card.addEventListener('blur', hide);
  card.addEventListener('keydown', event => {
    const svg = seen(), marks = svg ? places(svg) : [];
    if (event.key === 'Escape') hide();
    if (svg && '+-0'.includes(event.key)) for (const panel of panelsOf(svg)) {
      const middle = marks[at]?.[0] === panel.table ? panel.a + (marks[at][3] - panel.left) * (panel.b - panel.a) / (panel.right - panel.left)
        : (panel.a + panel.b) / 2, half = (panel.b - panel.a) * { '+': 0.25, '-': 1, '0': 1e6 }[event.key];
      panel.zoom(middle - half, middle + half);
      hide();
    }
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !marks.length) return;
    event.preventDefault();
    if (event.shiftKey) {
      const series = place => `${place[0]} ${place[2]}`, now = series(marks[Math.max(at, 0)]);
      do at = (at + step + marks.length) % marks.length; while (series(marks[at]) === now && marks.some(place => series(place) !== now));
    } else at = (at + step + marks.length) % marks.length;
    say(svg, marks[at]);
  });
}
