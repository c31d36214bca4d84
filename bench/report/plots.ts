/** Plots as SVG, drawn here: a few rectangles and lines need no library. They read in a light and in a dark page. */
import type { Results } from './results.ts';

const COLOURS: Readonly<Record<string, string>> = {
  floor: '#8a8f98',
  'engine-minimum': '#5b6470',
  mooring: '#0f7b6c',
  'mooring-3-workers': '#3aa796',
  'engine-minimum-external': '#98a0ab',
  'mooring-external': '#79c7bb',
  'plain-temporal': '#b4532a',
  dbos: '#7a4fa3',
  restate: '#2f66b3',
};
const PALETTE = Object.values(COLOURS);
const STYLE = `<style>text{font:12px system-ui,sans-serif;fill:#222}.t{font-size:14px;font-weight:600}.m{fill:#666}.g{stroke:#ccc}
@media (prefers-color-scheme:dark){text{fill:#ddd}.m{fill:#999}.g{stroke:#444}}</style>`;

function escapeText(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
}

function svg(width: number, height: number, body: readonly string[]): string {
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img">${STYLE}${body.join('')}</svg>\n`;
}

interface Bar {
  readonly label: string;
  readonly value: number;
  readonly least: number;
  readonly greatest: number;
  readonly colour: string;
}

/** Horizontal bars with the spread of the rounds as a whisker. */
function bars(title: string, unit: string, all: readonly Bar[]): string {
  const left = 330;
  const wide = 330;
  const most = Math.max(...all.map((bar) => bar.greatest), 1e-9);
  const at = (value: number) => left + (value / most) * wide;
  const body = [`<text class="t" x="8" y="20">${escapeText(title)}</text>`];
  for (const [index, bar] of all.entries()) {
    const y = 36 + index * 28;
    body.push(
      `<text x="${left - 8}" y="${y + 14}" text-anchor="end">${escapeText(bar.label)}</text>`,
      `<rect x="${left}" y="${y}" width="${Math.max(1, at(bar.value) - left).toFixed(1)}" height="20" rx="2" fill="${bar.colour}"/>`,
      `<line class="g" x1="${at(bar.least).toFixed(1)}" x2="${at(bar.greatest).toFixed(1)}" y1="${y + 10}" y2="${y + 10}" stroke-width="2"/>`,
      `<text class="m" x="${(at(bar.greatest) + 6).toFixed(1)}" y="${y + 14}">${bar.value.toPrecision(3)} ${unit}</text>`,
    );
  }
  return svg(760, 48 + all.length * 28, body);
}

interface Line {
  readonly label: string;
  readonly points: readonly (readonly [number, number])[];
  readonly colour: string;
}

/** Lines over axes that are both logarithmic, or over a linear pair that starts at zero. */
function lines(title: string, xLabel: string, yLabel: string, all: readonly Line[], scale: 'log' | 'linear'): string {
  const box = { left: 60, top: 36, width: 420, height: 240 };
  const points = all.flatMap((line) => line.points).filter(([x, y]) => x > 0 && y > 0);
  const place = (value: number) => (scale === 'log' ? Math.log10(value) : value);
  const range = (values: number[]): [number, number] => {
    if (scale === 'linear') return [0, Math.max(...values)];
    const low = Math.floor(Math.min(...values.map(place)));
    const high = Math.ceil(Math.max(...values.map(place)));
    return [low, Math.max(high, low + 1)];
  };
  const [x0, x1] = range(points.map(([x]) => x));
  const [y0, y1] = range(points.map(([, y]) => y));
  const atX = (x: number) => box.left + ((place(x) - x0) / (x1 - x0)) * box.width;
  const atY = (y: number) => box.top + box.height - ((place(y) - y0) / (y1 - y0)) * box.height;
  const body = [`<text class="t" x="8" y="20">${escapeText(title)}</text>`];
  const ticks = (low: number, high: number) =>
    scale === 'log'
      ? Array.from({ length: high - low + 1 }, (_, step) => 10 ** (low + step))
      : [0, 0.25, 0.5, 0.75, 1].map((part) => low + part * (high - low));
  for (const y of ticks(y0, y1))
    body.push(
      `<line class="g" x1="${box.left}" x2="${box.left + box.width}" y1="${atY(y).toFixed(1)}" y2="${atY(y).toFixed(1)}"/>`,
      `<text class="m" x="${box.left - 6}" y="${(atY(y) + 4).toFixed(1)}" text-anchor="end">${Number(y.toPrecision(3)).toLocaleString('en')}</text>`,
    );
  for (const x of ticks(x0, x1))
    body.push(
      `<text class="m" x="${atX(x).toFixed(1)}" y="${box.top + box.height + 18}" text-anchor="middle">${Number(x.toPrecision(3)).toLocaleString('en')}</text>`,
    );
  body.push(
    `<text class="m" x="${box.left + box.width / 2}" y="${box.top + box.height + 38}" text-anchor="middle">${escapeText(xLabel)}</text>`,
    `<text class="m" x="${box.left}" y="${box.top - 6}">${escapeText(yLabel)}</text>`,
  );
  for (const [index, line] of all.entries()) {
    const drawn = line.points
      .filter(([x, y]) => x > 0 && y > 0)
      .map(([x, y]) => `${atX(x).toFixed(1)},${atY(y).toFixed(1)}`);
    body.push(`<polyline fill="none" stroke="${line.colour}" stroke-width="2" points="${drawn.join(' ')}"/>`);
    for (const point of drawn)
      body.push(`<circle cx="${point.split(',')[0]}" cy="${point.split(',')[1]}" r="3" fill="${line.colour}"/>`);
    const y = box.top + 8 + index * 18;
    body.push(
      `<rect x="${box.left + box.width + 16}" y="${y - 8}" width="10" height="10" fill="${line.colour}"/>`,
      `<text x="${box.left + box.width + 32}" y="${y + 1}">${escapeText(line.label)}</text>`,
    );
  }
  return svg(760, box.top + box.height + Math.max(50, (all.length - 12) * 18), body);
}

const SHORT: Readonly<Record<string, string>> = {
  floor: 'plain function (floor)',
  'engine-minimum': 'empty workflow (engine’s minimum)',
  'plain-temporal': 'plain Temporal, as shipped',
};

/** Every plot of a run, by the name of its file. */
export function plots(results: Results): Record<string, string> {
  const made: Record<string, string> = {};
  const timed = results.contenders.filter((one) => one.latency !== null);
  const label = (one: { id: string; title: string }) => SHORT[one.id] ?? one.title;
  const colour = (id: string, index: number) => COLOURS[id] ?? PALETTE[index % PALETTE.length] ?? '#888';
  if (timed.length > 0) {
    made['latency.svg'] = bars(
      'Latency of a start at concurrency 1 (median, and the spread of the rounds)',
      'ms',
      timed.map((one, index) => {
        const p50 = one.latency?.p50 ?? { median: 0, least: 0, greatest: 0 };
        return {
          label: label(one),
          value: p50.median,
          least: p50.least,
          greatest: p50.greatest,
          colour: colour(one.id, index),
        };
      }),
    );
    made['throughput.svg'] = lines(
      'Starts per second, by how many at a time',
      'starts at a time',
      'per second',
      timed.map((one, index) => ({
        label: label(one),
        colour: colour(one.id, index),
        points: one.levels.map((level) => [level.concurrency, level.perSecond.median] as const),
      })),
      'log',
    );
    made['cpu.svg'] = bars(
      'CPU per start: front or API, worker, server and PostgreSQL',
      'ms',
      timed.map((one, index) => {
        const cpu = one.levels.at(-1)?.cpuMsPerSaga;
        const value = cpu === undefined ? 0 : cpu.front + cpu.worker + cpu.server + cpu.postgres;
        return { label: label(one), value, least: value, greatest: value, colour: colour(one.id, index) };
      }),
    );
  }
  if (results.scale !== null) {
    const { byInstances } = results.scale;
    made['scale.svg'] = lines(
      'Growth with the number of instances',
      'instances in the database',
      'milliseconds',
      Object.keys(byInstances[0]?.ms ?? {}).map((operation, index) => ({
        label: operation,
        colour: PALETTE[index % PALETTE.length] ?? '#888',
        points: byInstances.map((row) => [row.instances, row.ms[operation] ?? 0] as const),
      })),
      'log',
    );
  }
  if (results.memory !== null) {
    made['memory.svg'] = lines(
      'Resident memory over sagas',
      'sagas',
      'MB',
      (['workerBytes', 'apiBytes'] as const).map((key) => ({
        label: key === 'workerBytes' ? 'worker' : 'API',
        colour: key === 'workerBytes' ? '#0f7b6c' : '#2f66b3',
        points: results.memory?.points.map((point) => [point.sagas, point[key] / 1e6] as const) ?? [],
      })),
      'linear',
    );
  }
  return made;
}
