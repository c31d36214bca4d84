/** Writes `deploy/grafana-dashboard.json`: `npm run dashboard`. Panels are data, so that a metric is added in one line. */
import { writeFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';

interface Panel {
  readonly title: string;
  /** What a person does when it looks wrong. */
  readonly description: string;
  readonly unit: 's' | 'ops' | 'short' | 'bytes' | 'percentunit';
  /** PromQL by legend. */
  readonly queries: Readonly<Record<string, string>>;
}

const p99 = (metric: string, by: string) =>
  `histogram_quantile(0.99, sum by (le, ${by}) (rate(${metric}_bucket[$__rate_interval])))`;

/** Row by row, in the order in which one looks. */
export const PANELS: readonly (readonly [row: string, panels: readonly Panel[]])[] = [
  [
    'Sagas',
    [
      {
        title: 'Sagas by outcome',
        description: 'unwound and refused starts and migrations have told their callers why.',
        unit: 'ops',
        queries: {
          '{{saga}} {{outcome}}': 'sum by (saga, outcome) (rate(mooring_sagas_total[$__rate_interval]))',
        },
      },
      {
        title: 'Unwinds by reason',
        description: 'Which step failed for good, and the type of its failure.',
        unit: 'ops',
        queries: {
          '{{saga}} {{failed_step}} {{reason}}':
            'sum by (saga, failed_step, reason) (rate(mooring_sagas_total{outcome="unwound"}[$__rate_interval]))',
        },
      },
      {
        title: 'Steps that failed',
        description:
          '"retry" is tried again, "final" unwinds its saga. A step that only retries waits for its sled or for PostgreSQL.',
        unit: 'ops',
        queries: {
          '{{step}} {{outcome}}':
            'sum by (step, outcome) (rate(mooring_step_seconds_count{outcome!="done"}[$__rate_interval]))',
        },
      },
      {
        title: 'Step duration, 99th percentile',
        description: 'One attempt of each step.',
        unit: 's',
        queries: { '{{step}}': p99('mooring_step_seconds', 'step') },
      },
      {
        title: 'Workflow duration, 99th percentile',
        description: 'From the start of a workflow to its end.',
        unit: 's',
        queries: { '{{workflow_type}}': p99('temporal_workflow_endtoend_latency_seconds', 'workflow_type') },
      },
    ],
  ],
  [
    'Records',
    [
      {
        title: 'Update lag, 99th percentile',
        description:
          'From a fact (a VMM ended, a migration completed) to the commit that acted on it. Above the scan’s interval, the update saga’s workers are behind.',
        unit: 's',
        queries: { '{{case}}': p99('mooring_update_lag_seconds', 'case') },
      },
      {
        title: 'What the reconciling loops found',
        description:
          'Zero on a healthy day: each finding is a message or a process that was lost and has been made up for.',
        unit: 'ops',
        queries: {
          '{{reconciler}} {{finding}}':
            'sum by (reconciler, finding) (rate(mooring_reconciler_findings_total[$__rate_interval]))',
        },
      },
      {
        title: 'Reports of sled agents',
        description: '"unknown" and "unwound" reports are answered and written nowhere.',
        unit: 'ops',
        queries: { '{{verdict}}': 'sum by (verdict) (rate(mooring_reports_total[$__rate_interval]))' },
      },
      {
        title: 'Instances and migrations',
        description: 'By the state of the instance’s row.',
        unit: 'short',
        queries: {
          '{{state}}': 'max by (state) (mooring_instances)',
          'migrations in flight': 'max(mooring_migrations_in_flight)',
          'operations open': 'max(mooring_operations_open)',
        },
      },
    ],
  ],
  [
    'Sleds',
    [
      {
        title: 'Threads reserved',
        description: 'Share of each sled’s threads. When all are near 1, starts are answered with 507.',
        unit: 'percentunit',
        queries: { '{{sled}}': 'max by (sled) (mooring_sled_threads_reserved / mooring_sled_threads)' },
      },
      {
        title: 'Memory reserved',
        description: 'Share of each sled’s memory.',
        unit: 'percentunit',
        queries: { '{{sled}}': 'max by (sled) (mooring_sled_memory_reserved_bytes / mooring_sled_memory_bytes)' },
      },
      {
        title: 'Calls without an answer',
        description:
          'A sled that stays here is silent: look at it; only its word, or yours (force-stop, expunge), ends what waits for it.',
        unit: 'ops',
        queries: {
          '{{sled}} {{answer}}':
            'sum by (sled, answer) (rate(mooring_sled_call_seconds_count{answer!="accepted"}[$__rate_interval]))',
        },
      },
      {
        title: 'Call duration, 99th percentile',
        description: 'By call.',
        unit: 's',
        queries: { '{{call}}': p99('mooring_sled_call_seconds', 'call') },
      },
    ],
  ],
  [
    'API and workers',
    [
      {
        title: 'Requests by status',
        description: '5xx other than 503 and 507 are faults of ours.',
        unit: 'ops',
        queries: {
          '{{status}}': 'sum by (status) (rate(mooring_http_request_seconds_count[$__rate_interval]))',
        },
      },
      {
        title: 'Request duration, 99th percentile',
        description: 'Starts and migrations wait for their saga’s word.',
        unit: 's',
        queries: { '{{route}}': p99('mooring_http_request_seconds', 'route') },
      },
      {
        title: 'Queue time of tasks, 99th percentile',
        description:
          'How long sagas, and steps that were not settled at once, wait for a worker. When it rises, add workers.',
        unit: 's',
        queries: {
          'sagas of {{task_queue}}': p99('temporal_workflow_task_schedule_to_start_latency_seconds', 'task_queue'),
          'activities of {{task_queue}}': p99('temporal_activity_schedule_to_start_latency_seconds', 'task_queue'),
        },
      },
      {
        title: 'Free slots of the workers',
        description: 'At zero a worker takes no more work.',
        unit: 'short',
        queries: { '{{worker_type}}': 'sum by (worker_type) (temporal_worker_task_slots_available)' },
      },
      {
        title: 'Resident memory',
        description: 'Of each process; flat over days.',
        unit: 'bytes',
        queries: { '{{instance}}': 'process_resident_memory_bytes' },
      },
      {
        title: 'Event loop lag, 99th percentile',
        description: 'Above 0.1 s a process is short of CPU.',
        unit: 's',
        queries: { '{{instance}}': 'nodejs_eventloop_lag_p99_seconds' },
      },
    ],
  ],
];

/** The dashboard as Grafana imports it; it asks for its Prometheus data source. */
export function dashboard(): unknown {
  const panels: unknown[] = [];
  let y = 0;
  for (const [row, inRow] of PANELS) {
    panels.push({ type: 'row', title: row, collapsed: false, gridPos: { x: 0, y, w: 24, h: 1 }, panels: [] });
    y += 1;
    for (const [index, panel] of inRow.entries()) {
      panels.push({
        type: 'timeseries',
        title: panel.title,
        description: panel.description,
        // biome-ignore lint/suspicious/noTemplateCurlyInString: Grafana's own variable, not ours.
        datasource: { type: 'prometheus', uid: '${datasource}' },
        gridPos: { x: (index % 2) * 12, y: y + Math.floor(index / 2) * 8, w: 12, h: 8 },
        fieldConfig: { defaults: { unit: panel.unit, min: 0 }, overrides: [] },
        options: { legend: { displayMode: 'list', placement: 'bottom' }, tooltip: { mode: 'multi', sort: 'desc' } },
        targets: Object.entries(panel.queries).map(([legendFormat, expr], at) => ({
          refId: String.fromCharCode(65 + at),
          expr,
          legendFormat,
        })),
      });
    }
    y += Math.ceil(inRow.length / 2) * 8;
  }
  return {
    uid: 'mooring',
    title: 'Mooring',
    tags: ['mooring'],
    schemaVersion: 39,
    refresh: '30s',
    time: { from: 'now-3h', to: 'now' },
    templating: {
      list: [{ name: 'datasource', type: 'datasource', query: 'prometheus', label: 'Prometheus' }],
    },
    panels: panels.map((panel, index) => ({ id: index + 1, ...(panel as object) })),
  };
}

/** The names of the metrics that the dashboard asks for, without the suffixes of a histogram's parts. */
export function metricsOfDashboard(): string[] {
  const queries = PANELS.flatMap(([, panels]) => panels.flatMap((panel) => Object.values(panel.queries)));
  const names = queries.flatMap((query) => query.match(/\b(mooring|temporal|process|nodejs)_[a-z0-9_]+/g) ?? []);
  return [...new Set(names.map((name) => name.replace(/_(bucket|count|sum)$/, '')))];
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const file = fileURLToPath(new URL('grafana-dashboard.json', import.meta.url));
  await writeFile(file, `${JSON.stringify(dashboard(), null, 2)}\n`);
  console.log('deploy/grafana-dashboard.json is written');
}
