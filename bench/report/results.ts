/** What a run of the benchmark has found: written as JSON, and what tables and plots are made of. */

import type { SagaCounts } from '../measure/counts.ts';
import type { MemoryResult } from '../memory.ts';
import type { ScaleResult } from '../scale.ts';
import type { Role } from '../system/arena.ts';
import type { Spread } from './statistics.ts';

export interface Latency {
  readonly p50: Spread;
  readonly p95: Spread;
  readonly p99: Spread;
}

export interface LevelResult {
  readonly concurrency: number;
  readonly perSecond: Spread;
  readonly p50Ms: Spread;
  readonly cpuMsPerSaga: Readonly<Record<Role, number>>;
}

export interface ContenderResult {
  readonly id: string;
  readonly title: string;
  readonly durability: string;
  /** Milliseconds of a start at concurrency 1: medians over the rounds, with the least and the greatest round. */
  readonly latency: Latency | null;
  readonly levels: readonly LevelResult[];
  readonly memoryBytes: Readonly<Record<'front' | 'worker' | 'server' | 'sleds', number>> | null;
  /** By kind of saga. */
  readonly counts: Readonly<Record<string, SagaCounts>>;
  /** Median, 95th and 99th percentile milliseconds at concurrency 1 of the other sagas. */
  readonly otherSagas: Readonly<Record<string, { p50: number; p95: number; p99: number }>>;
}

export interface Check {
  readonly name: string;
  readonly value: number;
  readonly limit: number;
  /** Whether the value must not be above or not be below the limit. */
  readonly must: 'at most' | 'at least';
  /** A count, which every machine finds the same; a ratio of times says something only on a quiet machine. */
  readonly kind: 'count' | 'ratio';
}

export interface Results {
  readonly when: string;
  readonly mode: string;
  readonly machine: {
    cpus: number;
    model: string;
    memoryBytes: number;
    loadBefore: number;
    node: string;
    platform: string;
  };
  readonly settings: Readonly<Record<string, unknown>>;
  /** Rounds that a contender did not end, and why. */
  readonly failures?: readonly string[];
  readonly contenders: readonly ContenderResult[];
  readonly checks: readonly Check[];
  readonly scale: ScaleResult | null;
  readonly memory: MemoryResult | null;
}

/** Whether a check holds. */
export function holds({ value, limit, must }: Check): boolean {
  return must === 'at most' ? value <= limit : value >= limit;
}
