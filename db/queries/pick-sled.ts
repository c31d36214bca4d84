/**
 * Placement: which sled a VMM goes to, and why there is none. What is picked here is only a proposal: the claim that
 * follows is refused by the sled's sums and by the groups' guard if something changed meanwhile, and picks again.
 */
import { sql } from 'drizzle-orm';
import { z } from 'zod';
import { LATE_AFTER_LEASES } from '../../model/lease.ts';
import { AFFINITY_KINDS, groupNoun, SLED_POLICIES } from '../../model/states.ts';
import type { Queryable } from '../connect.ts';

/**
 * A sled that takes new VMMs: in service, not declared dead, with no other agent than its own at its address, and, with fencing,
 * lately sure of its lease.
 */
export const takesVmms =
  sql.raw(`(sled.policy = 'in_service' AND sled.time_declared_dead IS NULL AND NOT sled.another_answers
  AND (sled.lease_ms IS NULL
    OR coalesce(sled.lease_confirmed_at + sled.lease_ms * ${LATE_AFTER_LEASES} * interval '1 millisecond' > now(), false)))`);

/** A sled that is picked last of all: it gives no answer, as far as is known, or its agent says what ails it. */
const ails = sql.raw(`(sled.silent_since IS NOT NULL OR cardinality(sled.agent_trouble) > 0)`);

const WHY_PASSED_OVER = 'dead, late with the renewal of their lease, or not answered for by an agent of their own';

export interface PlacementRequest {
  /** Its groups are honoured; where it is itself doesn't count. */
  readonly instanceId: string;
  readonly ncpus: number;
  readonly memoryBytes: number;
  /** Sleds that must not be picked, for example the one that is drained. */
  readonly excludeSledIds?: readonly string[];
  /** The CPU that its guest sees, where it runs already: only where that is offered it can go on. `null` or absent: any. */
  readonly cpuModel?: string | null | undefined;
}

const pickedSled = z.object({
  id: z.string(),
  name: z.string(),
  address: z.string(),
  keptAgentId: z.string().nullable(),
  /** The CPU that a guest gets which starts there; `null`: its agent doesn't tell them apart. */
  cpuModel: z.string().nullable(),
});
export type PickedSled = z.infer<typeof pickedSled>;

/** Where the other members of an instance's groups are, or may soon be. */
const peers = (instanceId: string) => sql`
  SELECT held.sled_id, other.kind, other.policy, other.name
  FROM affinity_group_member mine
  JOIN affinity_group other ON other.id = mine.group_id
  JOIN affinity_group_member member ON member.group_id = mine.group_id AND member.instance_id <> mine.instance_id
  JOIN sled_reservation held ON held.instance_id = member.instance_id AND held.kind <> 'tombstoned'
  WHERE mine.instance_id = ${instanceId}`;

/** Whether a peer's group forbids a sled: apart, but the peer is there; or together, but the peer is elsewhere. */
const forbids = sql.raw(`peer.policy = 'fail' AND (peer.kind = 'affinity') <> (peer.sled_id = sled.id)`);

const fits = (request: PlacementRequest) => sql`
  reserved_threads + ${request.ncpus}::int <= threads AND reserved_memory_bytes + ${request.memoryBytes}::bigint <= memory_bytes`;

/** Whether a guest that runs can go on there. A sled that doesn't say what it offers may be anything. */
const offersCpu = ({ cpuModel = null }: PlacementRequest) => sql`
  (${cpuModel}::text IS NULL OR sled.cpu_models IS NULL OR ${cpuModel}::text = ANY(sled.cpu_models))`;

const excluded = (request: PlacementRequest) => sql`
  SELECT value::uuid FROM jsonb_array_elements_text(${JSON.stringify(request.excludeSledIds ?? [])}::jsonb)`;

/**
 * Picks a sled in service that fits and that no group with the policy `fail` forbids; `null` when there is none, of which
 * {@link explainNoSled} says why. Among those it prefers, in this order: sleds that answer and are well; what groups with the
 * policy `allow` ask for (a sled that one wants and another doesn't counts as neither, as in Omicron); the fewest members of
 * anti-affinity groups; the smallest share in use after the placement. Sleds within a tenth of each other count as equal and one is drawn, so
 * that starts at the same time don't all queue for one row.
 */
export async function pickSled(db: Queryable, request: PlacementRequest): Promise<PickedSled | null> {
  const [picked] = await listPlaces(db, request, 1);
  return picked ?? null;
}

/** At most so many of the sleds among which {@link pickSled} picks, the best first. */
export async function listPlaces(db: Queryable, request: PlacementRequest, limit: number): Promise<PickedSled[]> {
  const result = await db.execute(sql`
    WITH peer AS (${peers(request.instanceId)})
    SELECT sled.id, sled.name, sled.address, sled.kept_agent_id AS "keptAgentId", sled.cpu_models[1] AS "cpuModel" FROM sled
    CROSS JOIN LATERAL (
      SELECT count(*) FILTER (WHERE peer.kind = 'affinity') AS wanted,
        count(*) FILTER (WHERE peer.kind = 'anti_affinity') AS unwanted
      FROM peer WHERE peer.sled_id = sled.id
    ) here
    WHERE ${takesVmms} AND ${fits(request)} AND ${offersCpu(request)} AND sled.id NOT IN (${excluded(request)})
      AND NOT EXISTS (SELECT 1 FROM peer WHERE ${forbids})
    ORDER BY ${ails}, sign(here.wanted) - sign(here.unwanted) DESC, here.unwanted,
      floor(10 * greatest((reserved_threads + ${request.ncpus}::int)::float8 / threads,
        (reserved_memory_bytes + ${request.memoryBytes}::bigint)::float8 / memory_bytes)), random()
    LIMIT ${limit}`);
  return result.rows.map((row) => pickedSled.parse(row));
}

const forbiddingGroup = z.object({ name: z.string(), kind: z.enum(AFFINITY_KINDS) });
type ForbiddingGroup = z.infer<typeof forbiddingGroup>;

const countRow = z.object({
  in_service: z.number(),
  with_cpu: z.number(),
  silent: z.number(),
  with_room: z.number(),
  groups: z.array(forbiddingGroup),
});

/**
 * Why no sled can be picked, and what to do: no sled in service, none with the guest's CPU, no room, or which groups forbid the
 * sleds that have room.
 * For a message; by the time it is read it may have changed.
 */
export async function explainNoSled(db: Queryable, request: PlacementRequest): Promise<string> {
  const result = await db.execute(sql`
    WITH peer AS (${peers(request.instanceId)}), candidate AS (
      SELECT sled.id, ${fits(request)} AND ${offersCpu(request)} AS room, ${offersCpu(request)} AS cpu FROM sled
      WHERE ${takesVmms} AND id NOT IN (${excluded(request)})
    )
    SELECT count(*)::int AS in_service, count(*) FILTER (WHERE cpu)::int AS with_cpu,
      (SELECT count(*)::int FROM sled WHERE policy = 'in_service' AND NOT ${takesVmms}) AS silent, count(*) FILTER (WHERE room)::int AS with_room,
      coalesce((SELECT jsonb_agg(DISTINCT jsonb_build_object('name', peer.name, 'kind', peer.kind))
        FROM peer, candidate sled WHERE sled.room AND ${forbids}), '[]'::jsonb) AS groups
    FROM candidate`);
  const { in_service, with_cpu, silent, with_room, groups } = countRow.parse(result.rows[0]);
  const size = `${request.ncpus} CPUs, ${request.memoryBytes} bytes`;
  const passedOver = silent === 0 ? '' : ` (${silent} of them ${WHY_PASSED_OVER})`;
  if (in_service === 0)
    return silent === 0
      ? `no sled is in service: add one, or make one provisionable`
      : `no sled takes instances${passedOver}: see "mooring sled list", or try again in a moment`;
  if (with_cpu === 0)
    return `no sled that takes instances offers the CPU model ${request.cpuModel}, which its guest runs with: stop it and start it again, and it gets another one, or add a sled that offers it`;
  if (with_room === 0)
    return `no sled has room (${size})${silent === 0 ? '' : `, ${silent} being ${WHY_PASSED_OVER}`}: add a sled, or stop or move other instances`;
  return `${describeGroups(groups)} every sled that has room (${size}): stop or move other members, take the instance out of the group, or add a sled`;
}

function describeGroups(groups: readonly ForbiddingGroup[]): string {
  const named = groups.map(({ name, kind }) => `${groupNoun(kind)} "${name}"`);
  return `${named.join(' and ')} (policy fail) ${named.length === 1 ? 'forbids' : 'forbid'}`;
}

const destinationRow = z.object({
  id: z.string(),
  name: z.string(),
  address: z.string(),
  keptAgentId: z.string().nullable(),
  policy: z.enum(SLED_POLICIES),
  takes_vmms: z.boolean(),
  room: z.boolean(),
  offers_cpu: z.boolean(),
  cpu_models: z.array(z.string()).nullable(),
  source_name: z.string().nullable(),
  forbidden_by: z.array(forbiddingGroup),
});

export interface Destination extends PickedSled {
  readonly policy: z.infer<typeof destinationRow>['policy'];
  /** It is in service, not declared dead, answered for by its own agent, and not late with the renewal of its lease. */
  readonly takesVmms: boolean;
  /** It fits there. */
  readonly room: boolean;
  /** The CPU that the guest sees is among those that it offers. */
  readonly offersCpu: boolean;
  /** Those; `null`: it doesn't say. */
  readonly cpuModels: readonly string[] | null;
  /** The name of the sled that the instance is on; `null` when it is on none. */
  readonly sourceName: string | null;
  /** Which groups forbid it, in words; `null` when none does. */
  readonly forbiddenBy: string | null;
}

/** Reads a sled as the destination of an instance's migration; `null` when there is no such sled. */
export async function readDestination(
  db: Queryable,
  sledId: string,
  request: PlacementRequest,
): Promise<Destination | null> {
  const result = await db.execute(sql`
    WITH peer AS (${peers(request.instanceId)})
    SELECT id, name, address, kept_agent_id AS "keptAgentId", policy, ${takesVmms} AS takes_vmms, ${fits(request)} AS room,
      ${offersCpu(request)} AS offers_cpu, cpu_models,
      (SELECT source.name FROM instance JOIN vmm ON vmm.id = instance.active_vmm_id JOIN sled source ON source.id = vmm.sled_id
        WHERE instance.id = ${request.instanceId}) AS source_name,
      coalesce((SELECT jsonb_agg(DISTINCT jsonb_build_object('name', peer.name, 'kind', peer.kind))
        FROM peer WHERE ${forbids}), '[]'::jsonb) AS forbidden_by
    FROM sled WHERE id = ${sledId}`);
  const found = result.rows[0];
  if (found === undefined) return null;
  const { forbidden_by, takes_vmms, source_name, offers_cpu, cpu_models, ...row } = destinationRow.parse(found);
  return {
    ...row,
    cpuModel: request.cpuModel ?? null,
    takesVmms: takes_vmms,
    offersCpu: offers_cpu,
    cpuModels: cpu_models,
    sourceName: source_name,
    forbiddenBy: forbidden_by.length === 0 ? null : describeGroups(forbidden_by),
  };
}
