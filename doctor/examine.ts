/**
 * The doctor: checks every invariant of section 8 of docs/design.md on a live installation, by what its database, its Temporal
 * namespace and its sleds say. It changes nothing; trial writes leave nothing.
 *
 * What each part can show: the stored state 1, 7, 8, 9 and 10; the journal, where one is installed, 2, 3, 5, 6 and 7; the
 * sleds 4 and 8; Temporal 8. That every step can fail anywhere (5) is for a test to provoke and for the doctor to look at.
 */
import type { Client } from '@temporalio/client';
import type { SledClient } from '../activities/sled-client.ts';
import type { Database } from '../db/connect.ts';
import type { WriteProbe } from '../platform/telemetry/write-probe.ts';
import type { GuestLogEntry } from '../sled-agent/hypervisor.ts';
import type { Missing } from '../temporal/surroundings.ts';
import { examineDatabase } from './database.ts';
import type { Finding } from './finding.ts';
import { findGuestsOfExpunged, findStrangers, findTwins, surveySleds } from './sleds.ts';
import { findDoubleRuns } from './witness.ts';
import { findOpenWorkflows } from './workflows.ts';

export interface ExamineOptions {
  readonly db: Database;
  /** Without it, Temporal is not asked. */
  readonly temporal?: Client | undefined;
  /** Without it, the sleds are not asked. */
  readonly sleds?: SledClient | undefined;
  /** What is missing around the installation; without it, that is not asked. */
  readonly surroundings?: (() => Promise<readonly Missing[]>) | undefined;
  /** Tries whether what the installation writes to takes writes, each with a sentence where it doesn't; not tried without. */
  readonly probes?: readonly Pick<WriteProbe, 'problem'>[] | undefined;
  /** Nothing is under way any more: then more must hold. */
  readonly atRest: boolean;
  /** Whether to read the journal; by default if it is installed. `required` throws when it isn't. */
  readonly journal?: 'if installed' | 'required' | 'ignored';
  /** What simulated guests did, from all sleds together. */
  readonly guestLog?: readonly GuestLogEntry[];
}

/** What the doctor found, and what it looked at. */
export interface Examination {
  readonly findings: Finding[];
  readonly checked: {
    readonly atRest: boolean;
    readonly rules: number;
    readonly journal: boolean;
    readonly instances: number;
    readonly vmms: number;
    readonly sleds: number;
    /** The names of sleds that gave no answer: nothing is known of what runs there. */
    readonly silentSleds: readonly string[];
    readonly temporal: boolean;
    /** What the installation does without, in words. */
    readonly notes: readonly string[];
  };
}

/** Examines an installation. Throws when the database or Temporal can't be asked; a silent sled is no error. */
export async function examine(options: ExamineOptions): Promise<Examination> {
  const { db, atRest, temporal, sleds } = options;
  const survey = sleds === undefined ? null : await surveySleds(db, sleds);
  const stored = await examineDatabase(db, {
    atRest,
    journal: options.journal ?? 'if installed',
    silentSleds: survey?.silent.map((sled) => sled.id) ?? [],
  });
  const findings = [...stored.findings, ...findDoubleRuns(options.guestLog ?? [])];
  if (sleds !== undefined && survey !== null) {
    findings.push(...(await findTwins(survey, sleds, atRest)));
    findings.push(...(await findGuestsOfExpunged(db, survey, sleds)));
    if (atRest) findings.push(...(await findStrangers(db, survey, sleds)));
  }
  const missing = (await options.surroundings?.()) ?? [];
  const unwritable = await Promise.all((options.probes ?? []).map((probe) => probe.problem()));
  // What is asked for waits until it is there, and takes writes, again.
  const around = [
    ...missing.filter(({ needed }) => needed).map(({ problem }) => ({ rule: 'surroundings', message: problem })),
    ...unwritable.filter((message) => message !== null).map((message) => ({ rule: 'takes writes', message })),
  ];
  for (const problem of around)
    findings.push({ invariant: 9, holds: 'always', instanceId: null, sledId: null, ...problem });
  if (atRest && temporal !== undefined) findings.push(...(await findOpenWorkflows(db, temporal)));
  return {
    findings,
    checked: {
      atRest,
      rules: stored.rules,
      journal: stored.journal,
      instances: stored.instances,
      vmms: stored.vmms,
      sleds: survey?.inventories.length ?? 0,
      silentSleds: survey?.silent.map((sled) => sled.name) ?? [],
      temporal: atRest && temporal !== undefined,
      notes: [
        ...missing.filter(({ needed }) => !needed).map(({ problem }) => problem),
        ...(survey?.taken ?? []).map(
          (message) => `the address of a sled is taken, so that it counts as silent: ${message}`,
        ),
      ],
    },
  };
}
