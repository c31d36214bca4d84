/** Results as tables: for a terminal and, the same, as Markdown. */
import type { Count } from '../measure/counts.ts';
import type { ScaleRow } from '../scale.ts';
import { holds, type Results } from './results.ts';
import type { Spread } from './statistics.ts';

export interface Table {
  readonly title: string;
  readonly columns: readonly string[];
  readonly rows: readonly (readonly string[])[];
}

/** A number with three figures that count. */
function figure(value: number | null | undefined): string {
  if (value == null || !Number.isFinite(value)) return '–';
  const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2;
  return value.toLocaleString('en', { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

function withSpread(one: Spread | undefined): string {
  if (one === undefined) return '–';
  return one.least === one.greatest
    ? figure(one.median)
    : `${figure(one.median)} (${figure(one.least)}–${figure(one.greatest)})`;
}

/** A count as one number; with the greatest where not every saga had the same. */
export function asCount(count: Count | null | undefined): string {
  if (count == null) return '–';
  const { median, greatest } = count;
  return median === greatest ? String(median) : `${median} (up to ${greatest})`;
}

/** Every table of a run. */
export function tables(results: Results): Table[] {
  const made: Table[] = [];
  const timed = results.contenders.filter((one) => one.latency !== null);
  const floor = timed.find(({ id }) => id === 'floor')?.latency?.p50.median;
  const minimum = timed.find(({ id }) => id === 'engine-minimum')?.latency?.p50.median;
  if (timed.length > 0) {
    made.push({
      title: 'A start at concurrency 1, in milliseconds: median over the rounds (least–greatest round)',
      columns: ['', 'p50', 'p95', 'p99', '× floor', '× engine’s minimum'],
      rows: timed.map(({ title, latency }) => [
        title,
        withSpread(latency?.p50),
        withSpread(latency?.p95),
        withSpread(latency?.p99),
        figure((latency?.p50.median ?? Number.NaN) / (floor ?? Number.NaN)),
        figure((latency?.p50.median ?? Number.NaN) / (minimum ?? Number.NaN)),
      ]),
    });
    const levels = [...new Set(timed.flatMap((one) => one.levels.map((level) => level.concurrency)))];
    made.push({
      title: 'Starts per second, by how many at a time',
      columns: ['', ...levels.map(String)],
      rows: timed.map((one) => [
        one.title,
        ...levels.map((concurrency) =>
          withSpread(one.levels.find((level) => level.concurrency === concurrency)?.perSecond),
        ),
      ]),
    });
    made.push({
      title: 'CPU milliseconds per start at the greatest concurrency, and resident memory in MB after it',
      columns: ['', 'API or front', 'worker', 'server', 'PostgreSQL', 'sum', 'MB front', 'MB worker', 'MB server'],
      rows: timed.map((one) => {
        const cpu = one.levels.at(-1)?.cpuMsPerSaga;
        const sum = cpu === undefined ? Number.NaN : cpu.front + cpu.worker + cpu.server + cpu.postgres;
        const megabytes = (bytes: number | undefined) => (bytes ? figure(bytes / 1e6) : '–');
        const { front, worker, server } = one.memoryBytes ?? {};
        return [
          one.title,
          ...[cpu?.front, cpu?.worker, cpu?.server, cpu?.postgres, sum].map(figure),
          ...[front, worker, server].map(megabytes),
        ];
      }),
    });
  }
  const counted = results.contenders.flatMap((one) =>
    Object.entries(one.counts).map(([kind, counts]) => ({ one, kind, counts })),
  );
  if (counted.length > 0) {
    made.push({
      title:
        'What one saga costs, reports of its sleds and reads of the API included: medians of single sagas; means of transactions and bytes',
      columns: [
        '',
        'saga',
        'round trips',
        'history events',
        'workflow tasks',
        'transactions',
        'WAL bytes',
        'history bytes',
      ],
      rows: counted.map(({ one, kind, counts }) => [
        one.title,
        kind,
        ...[counts.roundTrips, counts.historyEvents, counts.workflowTasks].map(asCount),
        ...[counts.transactions, counts.walBytes, counts.historyBytes].map(figure),
      ]),
    });
  }
  const others = results.contenders.flatMap((one) =>
    Object.entries(one.otherSagas).map(([kind, times]) => ({ one, kind, times })),
  );
  if (others.length > 0) {
    made.push({
      title: 'The other sagas at concurrency 1, in milliseconds',
      columns: ['', 'saga', 'p50', 'p95', 'p99'],
      rows: others.map(({ one, kind, times }) => [
        one.title,
        kind,
        figure(times.p50),
        figure(times.p95),
        figure(times.p99),
      ]),
    });
  }
  if (results.scale !== null) {
    const { byInstances, bySleds } = results.scale;
    made.push(
      growth(
        'By instances in the database: milliseconds',
        byInstances,
        (row) => `${row.instances.toLocaleString('en')} instances`,
      ),
    );
    made.push(growth('By sleds: milliseconds', bySleds, (row) => `${row.sleds.toLocaleString('en')} sleds`));
  }
  if (results.memory !== null) {
    made.push({
      title: `Resident memory over ${results.memory.sagas.toLocaleString('en')} sagas; over the last half the worker grows by ${figure(results.memory.workerBytesPerThousand / 1e6)} MB per 1,000 sagas`,
      columns: ['sagas', 'worker MB', 'API MB'],
      rows: everyNth(results.memory.points, 12).map((point) => [
        point.sagas.toLocaleString('en'),
        figure(point.workerBytes / 1e6),
        figure(point.apiBytes / 1e6),
      ]),
    });
  }
  if (results.checks.length > 0) {
    made.push({
      title: 'Targets',
      columns: ['', 'found', 'must be', '', 'kind'],
      rows: results.checks.map((check) => [
        check.name,
        check.kind === 'count' ? String(check.value) : figure(check.value),
        `${check.must} ${check.limit}`,
        holds(check) ? 'holds' : 'MISSED',
        check.kind,
      ]),
    });
  }
  return made;
}

function growth(title: string, rows: readonly ScaleRow[], name: (row: ScaleRow) => string): Table {
  const operations = Object.keys(rows[0]?.ms ?? {});
  return {
    title,
    columns: ['', ...rows.map(name), 'growth'],
    rows: operations.map((operation) => {
      const times = rows.map((row) => row.ms[operation] ?? Number.NaN);
      return [operation, ...times.map(figure), `× ${figure((times.at(-1) ?? Number.NaN) / (times[0] ?? Number.NaN))}`];
    }),
  };
}

function everyNth<Item>(items: readonly Item[], wanted: number): Item[] {
  const step = Math.max(1, Math.ceil(items.length / wanted));
  return items.filter((_, index) => index % step === 0 || index === items.length - 1);
}

/** A table as aligned text. */
export function asText({ title, columns, rows }: Table): string {
  const widths = columns.map((column, at) => Math.max(column.length, ...rows.map((row) => row[at]?.length ?? 0)));
  const line = (cells: readonly string[]) =>
    cells
      .map((cell, at) => (at === 0 ? cell.padEnd(widths[at] ?? 0) : cell.padStart(widths[at] ?? 0)))
      .join('  ')
      .trimEnd();
  return [title, line(columns), ...rows.map(line)].join('\n');
}

/** A table as Markdown. */
export function asMarkdown({ title, columns, rows }: Table): string {
  const line = (cells: readonly string[]) => `| ${cells.join(' | ')} |`;
  return [
    `**${title}**`,
    '',
    line(columns),
    line(columns.map((_, at) => (at === 0 ? '---' : '--:'))),
    ...rows.map(line),
  ].join('\n');
}
