'use strict';
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const held = id => JSON.parse(document.getElementById(id)?.textContent ?? 'null');
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
addEventListener('beforeprint', () => all('.found details, .warnings details').forEach(each => { each.open = true; }));

// Tables: sort by a heading, show the rows that hold some words, copy them. Of a long table the first rows are
// shown, for a browser lays out thousands in seconds.
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
    words.addEventListener('input', () => {
      const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
      out.clear();
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        if (!wanted.every(word => text.includes(word))) out.add(row);
      }
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

// What is far from the screen is not laid out again: its size is known once the page has been drawn whole.
addEventListener('load', () => requestAnimationFrame(() => setTimeout(() => document.body.classList.add('far'))));

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
  const digits = Math.min(100, places + 60), exact = Math.abs(number).toFixed(digits);
  const cut = exact.length - digits + places;
  const tie = /^50*$/.test(exact.slice(cut)) && '02468'.includes(exact.slice(0, cut).replace(/\.$/, '').at(-1));
  const sign = number < 0 || Object.is(number, -0) ? '−' : '';
  return sign + (tie ? exact.slice(0, cut).replace(/\.$/, '') : Math.abs(number).toFixed(places));
};
const general = number => {
  if (number === 0) return '0';
  const [mantissa, exponent] = Math.abs(number).toExponential(3).split('e');
  const power = Number(exponent);
  const plain = power < -4 || power >= 4 ? `${Number(mantissa)}e${power}`
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
  const ends = [mean - half, mean + half], wide = (ends[1] - ends[0]) / 2;
  const [middle, low, high] = [mean, ...ends].map(each => rounded(each, wide));
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
