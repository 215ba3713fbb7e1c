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
const marked = (low, high, log) => {
  const decades = [];
  for (let k = Math.floor(low); log && k <= high; k++)
    for (const m of high - low < 3 ? [1, 2, 5] : [1]) decades.push([m * 10 ** k, k + Math.log10(m)]);
  const found = decades.filter(each => each[1] >= low && each[1] <= high);
  return found.length > 2 ? found : log ? nice(10 ** low, 10 ** high).map(each => [each, Math.log10(each)])
    : nice(low, high).map(each => [each, each]);
};
const panelOf = (svg, [table, axes, left, right, low, high, log]) => {
  const group = svg.querySelector(`[data-axes="${axes}"]`), ticks = all('[data-tick]', group);
  const model = ticks.find(each => each.querySelector('text'));
  let inner = null, made = [];
  const panel = { table, left, right, a: left, b: right };
  panel.at = x => left + (x - panel.a) * (right - left) / (panel.b - panel.a);
  panel.back = x => panel.a + (x - left) * (panel.b - panel.a) / (right - left);
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
    for (const mark of all('use', inner).filter(each => !each.closest('[data-band]')))
      mark.setAttribute('transform', `matrix(${1 / k} 0 0 1 ${mark.x.baseVal.value * (1 - 1 / k)} 0)`);
    made.forEach(each => each.remove());
    ticks.forEach(each => each.classList.toggle('off', !whole));
    const number = x => low + (x - left) / (right - left) * (high - low);
    made = whole || !model ? [] : marked(number(panel.a), number(panel.b), log).map(([value, place]) => {
      const tick = model.cloneNode(true), own = tick.querySelector('use').x.baseVal.value;
      const x = panel.at(left + (place - low) / (high - low) * (right - left));
      tick.classList.remove('off');
      tick.setAttribute('transform', `translate(${x - own} 0)`);
      all('text', tick).slice(1).forEach(each => each.remove());
      tick.querySelector('text').textContent = log ? general(value) : String(value).replace('-', '−');
      model.parentNode.append(tick);
      return tick;
    });
  };
  return panel;
};
for (const card of all('.card.chart')) {
  const figure = card.closest('figure');
  const tables = all('details table', figure).map(table => ({
    head: table.tHead.rows[0].cells, rows: [...table.tBodies[0].rows] }));
  let at = -1, known = new Map(), panels = new Map(), from = null;
  const seen = () => all('svg', card).find(svg => svg.clientWidth || svg.getBoundingClientRect().width);
  const places = svg => {
    if (!known.has(svg)) known.set(svg, JSON.parse(svg?.dataset.places ?? '[]')
      .sort((a, b) => a[0] - b[0] || a[2] - b[2] || a[1] - b[1]));
    return known.get(svg).flatMap(([t, r, c, x, y]) => {
      const panel = panelsOf(svg).find(each => each.table === t), now = panel ? panel.at(x) : x;
      const seen = !panel || now >= panel.left - 1 && now <= panel.right + 1;
      return seen && !tables[t]?.head[c]?.classList.contains('off') ? [[t, r, c, now, y]] : [];
    });
  };
  const panelsOf = svg => {
    const curves = () => JSON.parse(svg?.dataset.panels ?? '[]').map(each => panelOf(svg, each));
    if (!panels.has(svg)) panels.set(svg, curves());
    return panels.get(svg);
  };
  const placed = (svg, event) => {
    const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  };
  if (panelsOf(seen()).length) figure.querySelector('figcaption').after(make('p', { className: 'note hint',
    textContent: 'Drag across curves, or press + and −, to see them closely; a double click, or 0, shows all.' }));
  // Panels stand beside and below each other: the one under a place is the one whose marks are nearest to it.
  const panelAt = (svg, x, y) => {
    const far = panel => Math.min(...places(svg).filter(place => place[0] === panel.table)
      .map(place => Math.abs(place[4] - y)));
    return panelsOf(svg).filter(each => x > each.left - 8 && x < each.right + 8).sort((a, b) => far(a) - far(b))[0];
  };
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
    from = null;
    band.remove();
    if (ends[1] - ends[0] > 8) panel.zoom(...ends.map(panel.back));
  });
  card.addEventListener('dblclick', () => panelsOf(seen()).forEach(each => each.zoom(each.left, each.right)));
  const say = (svg, [t, r, c, x, y]) => {
    const { head, rows } = tables[t], row = rows[r], name = head[c].textContent, { n } = head[c].dataset;
    const where = [head[0].textContent, row.cells[0].textContent].filter(each => each && each !== 'x').join(' ');
    tip.textContent = `${name ? `${name}: ` : ''}${row.cells[c].textContent} · ${where}${n ? ` · ${n}` : ''}`;
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
      band.setAttribute('x', Math.min(x, from[1]));
      band.setAttribute('width', Math.abs(x - from[1]));
      band.setAttribute('height', svg.viewBox.baseVal.height);
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
      const middle = marks[at]?.[0] === panel.table ? panel.back(marks[at][3]) : (panel.a + panel.b) / 2;
      const half = (panel.b - panel.a) * { '+': 0.25, '-': 1, '0': 1e6 }[event.key];
      panel.zoom(middle - half, middle + half);
      hide();
    }
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !marks.length) return;
    event.preventDefault();
    if (event.shiftKey) {
      const series = place => `${place[0]} ${place[2]}`, now = series(marks[Math.max(at, 0)]);
      if (marks.every(place => series(place) === now)) return;
      do at = (at + step + marks.length) % marks.length; while (series(marks[at]) === now);
    } else at = (at + step + marks.length) % marks.length;
    say(svg, marks[at]);
  });
}
