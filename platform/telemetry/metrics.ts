/** What a process counts and measures, for Prometheus. Names follow its conventions: base units, `_total` for counters. */
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client';

/** Seconds; from a transaction's few milliseconds to a silent sled's time-out. */
const BUCKETS_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];

/** How old what a scrape shows of the database may be, in milliseconds. */
const CAPACITY_AGE_MS = 1_000;

/** What the database holds at a moment: what the gauges show. */
export interface Capacity {
  readonly sleds: readonly {
    readonly name: string;
    readonly policy: string;
    readonly threads: number;
    readonly threadsReserved: number;
    readonly memoryBytes: number;
    readonly memoryReservedBytes: number;
    /** How long it has given no answer; 0 while it answers. */
    readonly silentSeconds: number;
    /** How many things keep its agent from doing its work, as that says. */
    readonly troubles: number;
  }[];
  /** Instances by the state of their row. */
  readonly instances: readonly { readonly state: string; readonly count: number }[];
  /** Migrations that instances name. */
  readonly migrations: number;
  /** Starts and migrations without an outcome. */
  readonly openOperations: number;
}

/** How a step of a saga ended: `retry` will be tried again, `final` will not. */
export type StepOutcome = 'done' | 'retry' | 'final';

/** One process's metrics, with the process's own (CPU, memory, event loop) among them. */
export class Metrics {
  readonly registry = new Registry();
  /** Requests to the API, by endpoint and status. */
  readonly httpRequestSeconds = this.#histogram('mooring_http_request_seconds', 'Requests to the API.', [
    'method',
    'route',
    'status',
  ]);
  /** Attempts of the sagas' steps. */
  readonly stepSeconds = this.#histogram('mooring_step_seconds', 'Attempts of steps of sagas.', ['step', 'outcome']);
  /** Calls to sled agents, by what the answer meant. */
  readonly sledCallSeconds = this.#histogram('mooring_sled_call_seconds', 'Calls to sled agents.', [
    'sled',
    'call',
    'answer',
  ]);
  /** From the newest fact that an update acted on to its commit: how long records were behind. */
  readonly updateLagSeconds = this.#histogram(
    'mooring_update_lag_seconds',
    'From a fact to the commit of the update that acted on it.',
    ['case'],
  );
  /** Reports of sled agents, by what became of them. */
  readonly reports = this.#counter('mooring_reports_total', 'Reports of sled agents.', ['verdict']);
  /** Reports that were refused for the sake of who made them. */
  readonly reportsRefused = this.#counter(
    'mooring_reports_refused_total',
    'Reports refused because of who made them.',
    ['reason'],
  );
  /** What the reconciling loops found amiss: all zero on a healthy day. */
  readonly findings = this.#counter('mooring_reconciler_findings_total', 'What reconciling loops found.', [
    'reconciler',
    'finding',
  ]);

  constructor() {
    collectDefaultMetrics({ register: this.registry });
  }

  /** Shows which of the things around the process (`names`) are missing now: 1 each, 0 for those that are there. */
  watchSurroundings<Name extends string>(names: readonly Name[], missing: () => readonly Name[]): void {
    new Gauge({
      name: 'mooring_surroundings_missing',
      help: 'What is missing around this process: 1 while it is.',
      labelNames: ['what'],
      registers: [this.registry],
      collect() {
        const now = new Set(missing());
        for (const what of names) this.set({ what }, now.has(what) ? 1 : 0);
      },
    });
  }

  /** Shows how many read the stream of changes. */
  watchEventStreams(count: () => number): void {
    new Gauge({
      name: 'mooring_event_streams',
      help: 'Readers of the stream of changes.',
      registers: [this.registry],
      collect() {
        this.set(count());
      },
    });
  }

  /** Shows how long ago each reconciling loop last ran, in seconds; `read` leaves out those that are switched off. */
  watchLoops(read: () => readonly { readonly name: string; readonly silentMs: number }[]): void {
    new Gauge({
      name: 'mooring_reconciler_last_run_age_seconds',
      help: 'Since when a reconciling loop that is switched on has not run.',
      labelNames: ['reconciler'],
      registers: [this.registry],
      collect() {
        this.reset();
        for (const { name, silentMs } of read()) this.set({ reconciler: name }, silentMs / 1000);
      },
    });
  }

  /**
   * Shows capacity, as `read` finds it when Prometheus asks: sleds, instances by shown state, migrations in flight. A
   * database that does not answer leaves the last values out of the answer.
   */
  watchCapacity(read: () => Promise<Capacity>): void {
    let last: { at: number; capacity: Promise<Capacity | null> } | null = null;
    // One scrape asks every gauge: they share one look at the database.
    const look = () => {
      if (last === null || performance.now() - last.at > CAPACITY_AGE_MS) {
        last = { at: performance.now(), capacity: read().catch(() => null) };
      }
      return last.capacity;
    };
    const gauge = <Label extends string>(
      name: string,
      help: string,
      labelNames: Label[],
      samples: (capacity: Capacity) => { labels: Record<Label, string>; value: number }[],
    ) =>
      new Gauge({
        name,
        help,
        labelNames,
        registers: [this.registry],
        async collect() {
          this.reset();
          const capacity = await look();
          for (const { labels, value } of capacity === null ? [] : samples(capacity)) this.set(labels, value);
        },
      });
    const perSled = (name: string, help: string, value: (sled: Capacity['sleds'][number]) => number) =>
      gauge(name, help, ['sled', 'policy'], ({ sleds }) =>
        sleds.map((sled) => ({ labels: { sled: sled.name, policy: sled.policy }, value: value(sled) })),
      );
    perSled('mooring_sled_threads', 'Hardware threads of a sled.', (sled) => sled.threads);
    perSled('mooring_sled_threads_reserved', 'Threads reserved on a sled.', (sled) => sled.threadsReserved);
    perSled('mooring_sled_memory_bytes', 'Memory of a sled.', (sled) => sled.memoryBytes);
    perSled('mooring_sled_memory_reserved_bytes', 'Memory reserved on a sled.', (sled) => sled.memoryReservedBytes);
    perSled(
      'mooring_sled_silent_seconds',
      'How long a sled has given no answer; 0 while it answers.',
      (sled) => sled.silentSeconds,
    );
    perSled(
      'mooring_sled_agent_troubles',
      'What keeps a sled agent from doing its work, as it says itself.',
      (sled) => sled.troubles,
    );
    gauge('mooring_instances', 'Instances by the state of their row.', ['state'], ({ instances }) =>
      instances.map(({ state, count }) => ({ labels: { state }, value: count })),
    );
    gauge('mooring_migrations_in_flight', 'Migrations that instances name.', [], ({ migrations }) => [
      { labels: {}, value: migrations },
    ]);
    gauge('mooring_operations_open', 'Starts and migrations without an outcome.', [], ({ openOperations }) => [
      { labels: {}, value: openOperations },
    ]);
  }

  #histogram<Label extends string>(name: string, help: string, labelNames: Label[]): Histogram<Label> {
    return new Histogram({ name, help, labelNames, buckets: BUCKETS_SECONDS, registers: [this.registry] });
  }
  #counter<Label extends string>(name: string, help: string, labelNames: Label[]): Counter<Label> {
    return new Counter({ name, help, labelNames, registers: [this.registry] });
  }
}
