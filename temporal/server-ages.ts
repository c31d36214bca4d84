/**
 * How old times are that Temporal has given, by its own clock: never by this machine's wall clock, which may be minutes off. The
 * server is asked for its time once; from then on what counts is how long ago, on a clock that can't be set, a time was first seen.
 */
import { randomUUID } from 'node:crypto';
import type { Client } from '@temporalio/client';
import { PROBE, PROBE_SECONDS, type Seconds } from './write-probes.ts';

/** How long the server may take to tell its time, in milliseconds. */
const TELL_MS = 3_000;

interface SeenTimes {
  /** When they were seen, in milliseconds of the monotonic clock. */
  readonly at: number;
  readonly entries: ReadonlyMap<string, { readonly timeMs: number; readonly ageMs: number }>;
}

/** One observer's memory of Temporal's times: who looks again and again keeps one. */
export class ServerAges {
  readonly #readTime: () => Promise<number | null>;
  readonly #monotonicMs: () => number;
  readonly #seen = new Map<string, SeenTimes>();
  #anchor: { readonly timeMs: number; readonly at: number } | null = null;

  /**
   * `readTime` tells the server's time, in milliseconds since 1970, or `null` where it can't be had: an age is then taken from
   * the newest time of its group. `monotonicMs`: a clock that can't be set, in milliseconds.
   */
  constructor(readTime: () => Promise<number | null>, monotonicMs: () => number = () => performance.now()) {
    this.#readTime = readTime;
    this.#monotonicMs = monotonicMs;
  }

  /** For an observer of a client's server. */
  static of(client: Client): ServerAges {
    return new ServerAges(() => readServerTime(client).catch(() => null));
  }

  /** Has the server asked for its time, where that is still of use; to be called before {@link agesOf}. Never throws. */
  async settle(): Promise<void> {
    if (this.#anchor !== null || this.#seen.size > 0) return;
    const timeMs = await this.#readTime();
    if (timeMs !== null) this.#anchor ??= { timeMs, at: this.#monotonicMs() };
  }

  /**
   * The ages, in milliseconds, of times that the server has given for a group, each under a key of its own, in milliseconds since
   * 1970. One that has changed since the group was last looked at can't be older than that look, whatever any clock says.
   */
  agesOf(group: string, times: ReadonlyMap<string, number>): ReadonlyMap<string, number> {
    const at = this.#monotonicMs();
    const before = this.#seen.get(group);
    const sinceMs = before === undefined ? Number.POSITIVE_INFINITY : at - before.at;
    const nowMs = this.#anchor === null ? Math.max(0, ...times.values()) : this.#anchor.timeMs + (at - this.#anchor.at);
    const entries = new Map(
      [...times].map(([key, timeMs]) => {
        const known = before?.entries.get(key);
        const ageMs = known?.timeMs === timeMs ? known.ageMs + sinceMs : Math.min(sinceMs, Math.max(0, nowMs - timeMs));
        return [key, { timeMs, ageMs }] as const;
      }),
    );
    this.#seen.set(group, { at, entries });
    return new Map([...entries].map(([key, { ageMs }]) => [key, ageMs]));
  }
}

/** The server's own time, in milliseconds since 1970: that of a run which is begun for it, and deleted. Throws what a call throws. */
async function readServerTime(client: Client): Promise<number> {
  const { namespace } = client.options;
  const workflowId = `${PROBE}/${randomUUID()}`;
  return client.withDeadline(Date.now() + TELL_MS, async () => {
    const { workflowService } = client;
    await workflowService.startWorkflowExecution({
      namespace,
      workflowId,
      requestId: randomUUID(),
      workflowType: { name: PROBE },
      taskQueue: { name: PROBE },
      workflowRunTimeout: { seconds: PROBE_SECONDS as unknown as Seconds },
    });
    const execution = { workflowId };
    try {
      const { workflowExecutionInfo } = await workflowService.describeWorkflowExecution({ namespace, execution });
      return timestampMs(workflowExecutionInfo?.startTime);
    } finally {
      // What is not deleted ends by itself, and is deleted with its namespace's retention.
      await workflowService.deleteWorkflowExecution({ namespace, workflowExecution: execution }).catch(() => {});
    }
  });
}

/** A time of the server's, in milliseconds since 1970; 0 for none. */
export function timestampMs(time: { seconds?: unknown; nanos?: number | null } | null | undefined): number {
  return Number(time?.seconds ?? 0) * 1_000 + (time?.nanos ?? 0) / 1_000_000;
}
