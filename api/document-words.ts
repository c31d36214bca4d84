/**
 * What the OpenAPI document says in words: of each group of endpoints, of each endpoint, and an example of each body. A test holds
 * that every endpoint has its words, and that the examples are what the API takes.
 */
import { PERMISSIONS, type Permission } from '../model/permissions.ts';

/** The groups, in the order in which they are read. */
export const TAGS: readonly { readonly name: string; readonly description: string }[] = [
  { name: 'instances', description: 'Virtual machines: their records, their power, their way from sled to sled.' },
  { name: 'operations', description: 'Starts and migrations under way, and how they ended. Each is one workflow run.' },
  { name: 'events', description: 'What changes, as it happens (docs/events.md).' },
  { name: 'affinity', description: 'Groups of instances that are to be together on a sled, or apart.' },
  { name: 'projects', description: 'What instances belong to, and how much of the fleet it may use.' },
  { name: 'system', description: 'Sleds, drains, reconciling loops, tokens and the audit log: what is the fleet’s.' },
  { name: 'sled agents', description: 'What sled agents call. Operators have no use for it.' },
];

interface Words {
  /** One line. */
  readonly summary: string;
  /** What one must know besides. */
  readonly description?: string;
  /** A body that the endpoint takes. */
  readonly example?: unknown;
}

const A_SLED = 'c7f6ac0e-2f5b-4c9f-9a4e-6a1f9a3d2b10';
const POWERED_OFF = { sled_powered_off: true };
const VOUCHED =
  'The sled gives no answer, and you state that it is powered off: what runs there runs twice if that is not so.';

const groupWords = (noun: string, name: string, isAnti: boolean): Record<string, Words> => ({
  [`${name}_list`]: { summary: `List the ${noun}s of a project` },
  [`${name}_create`]: {
    summary: `Create an ${noun}`,
    description: `Its members are placed ${isAnti ? 'apart' : 'together'}: always with the policy "fail", where it can be with "allow".`,
    example: { name: 'web-tier', description: 'the three web servers', policy: 'allow', failure_domain: 'sled' },
  },
  [`${name}_view`]: { summary: `Show an ${noun}` },
  [`${name}_update`]: {
    summary: `Rename an ${noun}, or describe it anew`,
    example: { description: 'the web servers' },
  },
  [`${name}_delete`]: { summary: `Delete an ${noun}; its members stay` },
  [`${name}_member_list`]: { summary: `List the members of an ${noun}` },
  [`${name}_member_instance_view`]: { summary: `Show a member of an ${noun}` },
  [`${name}_member_instance_add`]: {
    summary: `Add an instance to an ${noun}`,
    description: 'Only one that has no place yet: stop it first.',
  },
  [`${name}_member_instance_delete`]: { summary: `Take an instance out of an ${noun}` },
  [`instance_${name}_list`]: { summary: `List the ${noun}s that an instance is in` },
});

/** By operation id. */
export const WORDS: Readonly<Record<string, Words>> = {
  current_user_view: {
    summary: 'Show who the API takes you for',
    description: 'Its role, its project, when it expires.',
  },

  project_list: { summary: 'List the projects that you may see' },
  project_create: { summary: 'Create a project', example: { name: 'default', description: 'where everything begins' } },
  project_view: { summary: 'Show a project' },
  project_update: { summary: 'Rename a project, or describe it anew', example: { description: 'the web shop' } },
  project_delete: { summary: 'Delete a project that has no instances' },
  project_quota_view: { summary: 'Show a project’s quota, and what is in use of it' },
  project_quota_update: {
    summary: 'Set a project’s quota',
    description: 'null is unlimited. One below what is in use refuses new starts, and ends nothing.',
    example: { cpus: 64, memory: 274_877_906_944 },
  },

  instance_list: { summary: 'List instances', description: 'By name within a project, by id over all of them.' },
  instance_create: {
    summary: 'Create an instance, and start it',
    description: 'It is there also where its first start fails: start_error says why.',
    example: {
      name: 'web',
      hostname: 'web',
      description: 'serves pages',
      ncpus: 2,
      memory: 1_073_741_824,
      start: true,
    },
  },
  instance_view: { summary: 'Show an instance' },
  instance_update: {
    summary: 'Change an instance',
    description: 'Its size only while it is stopped.',
    example: { auto_restart_policy: 'never', restart_priority: 'low' },
  },
  instance_delete: { summary: 'Delete an instance that is stopped or failed' },
  instance_start: { summary: 'Start an instance', description: 'Answered when a sled has accepted to run it.' },
  instance_stop: {
    summary: 'Stop an instance',
    description: 'Answered when that is on record, from when on it ends stopped.',
  },
  instance_reboot: { summary: 'Reboot an instance that runs' },
  instance_force_stop: {
    summary: 'Stop an instance whose sled does not answer',
    description: VOUCHED,
    example: POWERED_OFF,
  },
  instance_migrate: {
    summary: 'Migrate an instance to another sled while it runs',
    description: 'Answered when the destination has accepted; how far the guest is, `instance_migration_view` says.',
    example: { dst_sled_id: A_SLED },
  },
  instance_migration_view: { summary: 'Show how far an instance’s newest migration is, or how it ended' },
  instance_history: { summary: 'Tell an instance’s story, with links into the Temporal Web UI' },
  instance_serial_console: {
    summary: 'Read an instance’s serial console',
    description:
      'In base64, from an offset on; by polling from `last_byte_offset` on it can be followed, also across a migration.',
  },
  ...groupWords('affinity group', 'affinity_group', false),
  ...groupWords('anti-affinity group', 'anti_affinity_group', true),

  operation_list: { summary: 'List operations, the newest first' },
  operation_view: { summary: 'Show an operation, and the step that it is at' },
  event_stream: {
    summary: 'Follow what changes, as server-sent events',
    description:
      'Each event carries the whole object as it is now. Resumable by Last-Event-ID, or `after`; begins with `reset` where it is not. The ' +
      'schema below is of one event: its name and its data.',
  },
  system_activity_view: { summary: 'Show what happened in each of the last minutes' },

  sled_list: { summary: 'List sleds' },
  sled_add: {
    summary: 'Add a sled whose agent has no identity',
    description: 'Only where the API takes such; elsewhere a sled joins by an invitation.',
    example: { name: 'sled-4', address: '192.0.2.14:8099', threads: 64, memory: 274_877_906_944 },
  },
  sled_view: { summary: 'Show a sled' },
  sled_set_provision_policy: {
    summary: 'Take a sled into service, or out of it for new instances',
    example: { state: 'non_provisionable' },
  },
  sled_set_address: {
    summary: 'Say where a sled’s agent listens from now on',
    example: { address: '192.0.2.15:8099' },
  },
  sled_expunge: { summary: 'State that a sled is gone for good', description: VOUCHED, example: POWERED_OFF },
  sled_declare_dead: {
    summary: 'State that nothing runs on a sled any more',
    description: VOUCHED,
    example: POWERED_OFF,
  },
  sled_drain_view: { summary: 'Show how far the last drain of a sled has come' },
  sled_drain_begin: {
    summary: 'Drain a sled: move away all that runs there',
    description: 'Joins a drain that is under way.',
    example: { parallel: 4 },
  },
  sled_drain_stop: { summary: 'Stop a drain; the sled stays out of service' },
  sled_invite_create: {
    summary: 'Invite a sled: the answer has the one-time token by which it joins',
    example: { name: 'sled-5' },
  },
  sled_certificate_list: { summary: 'List the certificates of a sled, the newest first' },
  sled_certificate_revoke: { summary: 'Revoke every certificate of a sled' },
  reconciler_list: { summary: 'List the reconciling loops' },
  reconciler_update: { summary: 'Switch a reconciling loop on or off', example: { enabled: true } },
  reconciler_run: { summary: 'Run one pass of a reconciling loop now' },
  access_token_list: { summary: 'List access tokens, without their secrets' },
  access_token_create: {
    summary: 'Make an access token',
    description: 'The only answer that ever shows it.',
    example: { name: 'ci', role: 'collaborator', project: 'default', expires_in_seconds: 2_592_000 },
  },
  access_token_revoke: { summary: 'Revoke an access token: the next request that carries it is refused' },
  audit_log_list: { summary: 'List what was done, and by whom' },

  vmm_report: {
    summary: 'Report the state of a VMM',
    example: { vmm_state: { state: 'running', gen: 3, time_updated: '2026-11-30T12:00:00.000Z' } },
  },
  sled_lease_renew: {
    summary: 'Renew a sled’s lease',
    example: { lease_ms: 30_000, held: true, epoch: null, vmms: [] },
  },
  sled_find: { summary: 'Find a sled by its name' },
  network_instances: { summary: 'Read where each instance lives, page by page, and what changed since' },
};

/** Who may call an endpoint, in words. */
export function describePermission({ needs }: Permission): string {
  switch (needs) {
    case 'anyone':
      return 'Needs no token.';
    case 'known':
      return 'Needs any token.';
    case 'sled':
      return 'For sled agents.';
    case 'sled or viewer':
      return 'For sled agents, and viewers of the fleet.';
    default:
      return `Needs the role ${needs.role} on the ${needs.on === 'fleet' ? 'fleet' : 'project, or the fleet'}.`;
  }
}

/** The permissions by operation id. */
export const PERMISSION_OF: ReadonlyMap<string, Permission> = new Map(
  Object.values(PERMISSIONS).map((permission) => [permission.operation, permission]),
);
