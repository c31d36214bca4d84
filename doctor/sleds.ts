/**
 * Checks what the sleds report: invariant 4 (one guest at a time) and the sleds' part of invariant 8 (rest).
 *
 * Inventories are read at different moments and a report may be on its way, so one look proves nothing. Of two VMMs that
 * seem to run one instance's guest, the first sled is asked again after the second: when its VMM has the same generations
 * before and after, it was in that state all the while, and both ran at the moment when the second sled was asked.
 */
import {
  AnotherAgent,
  AnotherInstallation,
  type ExpungedSledAddress,
  type SledAddress,
  type SledClient,
  SledError,
} from '../activities/sled-client.ts';
import type { Database } from '../db/connect.ts';
import { type PlacedVmm, readPlacedVmms } from '../db/queries/read-placed-vmms.ts';
import { type DirectoryEntry, readSledDirectory } from '../db/queries/read-sled-directory.ts';
import { readExpungedSleds } from '../db/queries/read-watched-sleds.ts';
import { isGoneVmmState, isTerminalVmmState } from '../model/states.ts';
import type { SledInventory } from '../wire/sled-protocol.ts';
import type { Finding } from './finding.ts';

/** How long a sled may take to answer, in milliseconds, and how many are asked at a time. */
const ANSWER_MS = 3_000;
const CONCURRENT_SLEDS = 16;

type ReportedVmm = SledInventory['vmms'][number];

type Sled = Pick<DirectoryEntry, 'id'> & (SledAddress | ExpungedSledAddress);

/** What every sled reported of itself, at about one moment. */
export interface SledSurvey {
  readonly inventories: readonly { readonly sled: Sled; readonly vmms: readonly ReportedVmm[] }[];
  /** Sleds that gave no answer: what runs there is not known. */
  readonly silent: readonly Sled[];
  /** At which of their addresses another agent answers, or one that takes another installation's orders, in words. */
  readonly taken: readonly string[];
}

const isExpunged = (sled: Sled) => 'expunged' in sled;

/**
 * Reads the inventory of every sled, of those that were expunged too: should one answer, its guests may be second copies. A
 * sled without an answer is not an error, and an expunged one is expected to have none.
 */
export async function surveySleds(db: Database, client: SledClient): Promise<SledSurvey> {
  const expunged = (await readExpungedSleds(db)).map((sled) => ({ ...sled, expunged: true as const }));
  const known = await readSledDirectory(db);
  client.learnAgents(known);
  const queue: Sled[] = [...known, ...expunged];
  const inventories: { sled: Sled; vmms: ReportedVmm[] }[] = [];
  const silent: Sled[] = [];
  const taken: string[] = [];
  const work = async () => {
    for (let sled = queue.shift(); sled !== undefined; sled = queue.shift()) {
      const vmms = await inventoryOf(client, sled, (by) => taken.push(by.message));
      if (vmms === null) {
        if (!isExpunged(sled)) silent.push(sled);
      } else inventories.push({ sled, vmms });
    }
  };
  await Promise.all(Array.from({ length: CONCURRENT_SLEDS }, work));
  return { inventories, silent, taken };
}

async function inventoryOf(
  client: SledClient,
  sled: Sled,
  onAnother: (error: SledError) => void = () => {},
): Promise<ReportedVmm[] | null> {
  try {
    return (await client.readInventory(sled, ANSWER_MS)).vmms;
  } catch (error) {
    if (error instanceof AnotherAgent || error instanceof AnotherInstallation) onAnother(error);
    if (error instanceof SledError) return null;
    throw error;
  }
}

/**
 * Whether a VMM, as its sled reports it, executes guest code. A source whose guest has left does not; a destination does
 * from the moment when its side is completed; one that is starting may not yet.
 */
function runsGuest(vmm: ReportedVmm): boolean {
  if (vmm.migration_out?.state === 'completed') return false;
  switch (vmm.vmm_state.state) {
    case 'running':
    case 'rebooting':
    case 'stopping':
      return true;
    case 'migrating':
      return vmm.migration_out != null || vmm.migration_in?.state === 'completed';
    case 'starting':
    case 'stopped':
    case 'failed':
    case 'destroyed':
      return false;
  }
}

interface Place {
  readonly sled: Sled;
  readonly vmm: ReportedVmm;
}

/** `source` is in the middle of handing its guest over to `target`: its agent may learn of the end a moment later. */
function handsOver(source: ReportedVmm, target: ReportedVmm): boolean {
  return (
    source.vmm_state.state === 'migrating' &&
    source.migration_out != null &&
    source.migration_out.state !== 'failed' &&
    source.migration_out.migration_id === target.migration_in?.migration_id
  );
}

function sameMoment(before: ReportedVmm, after: ReportedVmm): boolean {
  return (
    before.vmm_state.gen === after.vmm_state.gen &&
    before.migration_in?.gen === after.migration_in?.gen &&
    before.migration_out?.gen === after.migration_out?.gen
  );
}

/** Invariant 4: at most one VMM of an instance runs its guest, the moment of a hand-over aside. */
export async function findTwins(survey: SledSurvey, client: SledClient, atRest: boolean): Promise<Finding[]> {
  const running = new Map<string, Place[]>();
  for (const { sled, vmms } of survey.inventories) {
    for (const vmm of vmms.filter(runsGuest)) {
      const places = running.get(vmm.instance_id) ?? [];
      running.set(vmm.instance_id, [...places, { sled, vmm }]);
    }
  }
  const findings: Finding[] = [];
  for (const [instanceId, places] of running) {
    for (const [index, first] of places.entries()) {
      for (const second of places.slice(index + 1)) {
        // One agent at two addresses, as when a sled was expunged and added anew: it has one VMM.
        if (first.vmm.vmm_id === second.vmm.vmm_id && (isExpunged(first.sled) || isExpunged(second.sled))) continue;
        if (!atRest && (handsOver(first.vmm, second.vmm) || handsOver(second.vmm, first.vmm))) continue;
        if (!(await runAtOnce(client, first, second, atRest))) continue;
        findings.push({
          invariant: 4,
          rule: 'one guest at a time',
          holds: atRest ? 'at rest' : 'always',
          instanceId,
          sledId: second.sled.id,
          message: `instance ${instanceId} runs twice: ${describe(first)}, and ${describe(second)}`,
        });
      }
    }
  }
  return findings;
}

/**
 * Invariant 4 as well: an expunged sled runs nothing, whatever the database has of what it reports. Two looks, since what it
 * has may be ended between them; of VMMs that are not placed on that sled nothing is known.
 */
export async function findGuestsOfExpunged(db: Database, survey: SledSurvey, client: SledClient): Promise<Finding[]> {
  const findings: Finding[] = [];
  for (const { sled, vmms } of survey.inventories.filter((one) => isExpunged(one.sled))) {
    const guests = vmms.filter(runsGuest);
    if (guests.length === 0) continue;
    const known = await readPlacedVmms(
      db,
      guests.map((vmm) => vmm.vmm_id),
    );
    const still = new Set(((await inventoryOf(client, sled)) ?? []).filter(runsGuest).map((vmm) => vmm.vmm_id));
    for (const vmm of guests) {
      if (known.get(vmm.vmm_id)?.sled_id !== sled.id || !still.has(vmm.vmm_id)) continue;
      findings.push({
        invariant: 4,
        rule: 'no guest on an expunged sled',
        holds: 'always',
        instanceId: vmm.instance_id,
        sledId: sled.id,
        message: `sled ${sled.name} was expunged, and answers: it still runs instance ${vmm.instance_id} in VMM ${vmm.vmm_id} (${vmm.vmm_state.state})`,
      });
    }
  }
  return findings;
}

async function runAtOnce(client: SledClient, first: Place, second: Place, atRest: boolean): Promise<boolean> {
  const find = async ({ sled, vmm }: Place) =>
    (await inventoryOf(client, sled))?.find((other) => other.vmm_id === vmm.vmm_id) ?? null;
  const before = await find(first);
  const between = await find(second);
  const after = await find(first);
  if (before === null || between === null || after === null) return false;
  if (!atRest && (handsOver(before, between) || handsOver(between, before))) return false;
  return runsGuest(before) && runsGuest(between) && runsGuest(after) && sameMoment(before, after);
}

function describe({ sled, vmm }: Place): string {
  return `VMM ${vmm.vmm_id} is ${vmm.vmm_state.state} on sled ${sled.name}`;
}

/** Why a VMM that lives on a sled should not be there, by the database; `null` when it should. */
function strangeness(known: PlacedVmm | undefined, sled: Sled, vmm: ReportedVmm): string | null {
  if (known === undefined) return 'the database does not know it';
  if (known.instance_id !== vmm.instance_id) return `the database has it for instance ${known.instance_id}`;
  if (known.sled_id !== sled.id) return 'the database has it on another sled';
  if (known.deleted) return `the database has it as ${known.state} and deleted`;
  return isGoneVmmState(known.state) ? `the database has it as ${known.state}` : null;
}

/** Invariant 8, at rest: what lives on the sleds is what lives in the database. */
export async function findStrangers(db: Database, survey: SledSurvey, client: SledClient): Promise<Finding[]> {
  const suspects = await compare(db, survey);
  if (suspects.length === 0) return [];
  // A second look, in the same order: what only a report on its way made strange has settled between the two.
  const again = await compare(db, await surveySleds(db, client));
  const still = new Set(again.map((finding) => finding.key));
  return suspects.filter((finding) => still.has(finding.key)).map(({ key: _, ...finding }) => finding);
}

async function compare(db: Database, survey: SledSurvey): Promise<(Finding & { key: string })[]> {
  // The database is read after the sleds: what a sled had been asked to register was in the database before.
  const known = await readPlacedVmms(
    db,
    survey.inventories.flatMap(({ vmms }) => vmms.map((vmm) => vmm.vmm_id)),
  );
  const findings: (Finding & { key: string })[] = [];
  for (const { sled, vmms } of survey.inventories.filter((one) => !isExpunged(one.sled))) {
    const present = new Set(vmms.map((vmm) => vmm.vmm_id));
    for (const vmm of vmms.filter(({ vmm_state }) => !isTerminalVmmState(vmm_state.state))) {
      const why = strangeness(known.get(vmm.vmm_id), sled, vmm);
      if (why === null) continue;
      findings.push({
        key: `${sled.id} ${vmm.vmm_id}`,
        invariant: 8,
        rule: 'no stranger on a sled',
        holds: 'at rest',
        instanceId: vmm.instance_id,
        sledId: sled.id,
        message: `sled ${sled.name} has VMM ${vmm.vmm_id} (${vmm.vmm_state.state}), but ${why}`,
      });
    }
    for (const vmm of known.values()) {
      if (vmm.sled_id !== sled.id || vmm.deleted || isGoneVmmState(vmm.state) || present.has(vmm.id)) continue;
      findings.push({
        key: `${sled.id} ${vmm.id}`,
        invariant: 8,
        rule: 'every VMM on its sled',
        holds: 'at rest',
        instanceId: vmm.instance_id,
        sledId: sled.id,
        message: `the database has VMM ${vmm.id} as ${vmm.state} on sled ${sled.name}, which does not have it`,
      });
    }
  }
  return findings;
}
