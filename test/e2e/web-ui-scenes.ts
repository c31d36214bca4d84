/** What the browser looks at: each kind of saga, brought about on a real stack, and where the Web UI shows it. */
import { SEARCH_ATTRIBUTES } from '../../model/search-attributes.ts';
import { TASK_QUEUE, workflowIds } from '../../model/workflow-names.ts';
import { waitUntil } from '../../platform/host/child-process.ts';
import { type Harness, refused } from '../support/harness.ts';

export interface Scene {
  /** Also the name of its screenshot. */
  readonly name: string;
  readonly path: string;
  /** What a person must find on the page as it opens. The Web UI sets a summary's quotation marks as it likes. */
  readonly finds: readonly (string | RegExp)[];
  /** What must be found on a tab of it, by the tab's name. */
  readonly tabs?: Readonly<Record<string, readonly (string | RegExp)[]>>;
}

const outOfOrder = { type: 'refuse', status: 409, message: 'the hypervisor is out of order' } as const;

/** The Web UI's address of a workflow's run: the latest one, or the latest with an outcome. */
async function pathOf(harness: Harness, workflowId: string, outcome?: string): Promise<string> {
  let { runId } = await harness.temporal.workflow.getHandle(workflowId).describe();
  if (outcome !== undefined) {
    const query = `WorkflowId = "${workflowId}" AND ${SEARCH_ATTRIBUTES.outcome} = "${outcome}"`;
    await waitUntil(async () => {
      for await (const run of harness.temporal.workflow.list({ query })) {
        runId = run.runId;
        return true;
      }
      return false;
    }, `no run of ${workflowId} was to be found as ${outcome}`);
  }
  return `/namespaces/default/workflows/${encodeURIComponent(workflowId)}/${runId}/timeline`;
}

/** The Web UI's address of a list of workflows. */
function listPath(query: string): string {
  return `/namespaces/default/workflows?query=${encodeURIComponent(query)}`;
}

/** A sled is drained, and one of its instances can't leave. */
async function playDrain(harness: Harness): Promise<Scene> {
  harness.everywhere(({ agent }) => agent.faults.clear());
  const [from, ...others] = harness.stack.sleds;
  if (from === undefined) throw new Error('there is no sled to drain');
  const setOthers = (policy: 'provisionable' | 'non_provisionable') =>
    Promise.all(others.map(({ id }) => harness.client.setSledPolicy(id, policy)));
  await setOthers('non_provisionable');
  for (const name of ['mail', 'search', 'stuck']) {
    const id = await harness.create(name);
    await harness.client.startInstance(id);
    await harness.shows(id, 'running');
  }
  await setOthers('provisionable');
  for (const { agent } of others) agent.faults.plant({ call: 'register', instance_name: 'stuck', act: outOfOrder });
  const workflowId = workflowIds.drain(from.id);
  // As the API begins it, with shorter pauses between its rounds.
  const drain = await harness.temporal.workflow.start('sledDrain', {
    workflowId,
    taskQueue: TASK_QUEUE,
    args: [{ sledId: from.id, sledName: from.name, parallel: 2, roundPauseMs: 50 }],
    staticSummary: `drain sled "${from.name}"`,
  });
  await drain.result();
  harness.everywhere(({ agent }) => agent.faults.clear());
  await harness.client.setSledPolicy(from.id, 'provisionable');
  return {
    name: 'drain',
    path: await pathOf(harness, workflowId),
    finds: ['take the sled out of service for new VMMs', 'read what is on the sled'],
    tabs: {
      'User Metadata': [
        new RegExp(`drain sled .${from.name}.`),
        new RegExp(`${from.name} is not drained: \\d of \\d moved, 1 could not move`),
        /stuck: the migration .*the hypervisor is out of order/,
      ],
    },
  };
}

/** Waits until a step of a workflow is stuck: it is an activity, and was tried again. */
async function untilPending(harness: Harness, workflowId: string, activity: string): Promise<void> {
  await waitUntil(
    async () => {
      const handle = harness.temporal.workflow.getHandle(workflowId);
      const description = await handle.describe().catch(() => null);
      return (description?.raw.pendingActivities ?? []).some(
        ({ activityType, attempt }) => activityType?.name === activity && (attempt ?? 0) > 1,
      );
    },
    `${workflowId} was never stuck at ${activity}`,
    60_000,
  );
}

/** Plays every scene; the last one is a saga that is compensating, and stays so until `release` is called. */
export async function playScenes(harness: Harness): Promise<{ scenes: Scene[]; release: () => Promise<void> }> {
  const short = async (id: string, which: 'active' | 'target' = 'active') =>
    (await harness.record(id))[which]?.id.slice(0, 8) ?? '';
  const scenes: Scene[] = [];

  const web = await harness.create('web');
  await harness.client.startInstance(web);
  await harness.shows(web, 'running');
  const { here, there } = await harness.placed(web);
  scenes.push({
    name: 'start',
    path: await pathOf(harness, workflowIds.start(web)),
    tabs: {
      'User Metadata': [
        /start instance .web./,
        `default/web · ${here.name} · VMM ${await short(web)}`,
        `register VMM ${await short(web)} on ${here.name}`,
        `tell ${here.name} to run VMM ${await short(web)}`,
        'Ended: started',
      ],
    },
    // Steps that are done at once are markers: by name on the timeline, in full in the current details.
    finds: ['claimStart', 'registerVmm', 'runVmm'],
  });

  // Both sides have reported before the update looks: else the guest may have left in one run, and arrived in the next.
  await harness.stack.worker.setUpdates(false);
  await harness.client.migrateInstance(web, there.id);
  await waitUntil(async () => (await harness.record(web)).migration?.targetState === 'completed', 'it never arrived');
  await harness.stack.worker.setUpdates(true);
  await waitUntil(async () => (await harness.record(web)).active?.sledId === there.id, 'it never moved');
  scenes.push({
    name: 'migration',
    path: await pathOf(harness, workflowIds.migrate(web)),
    finds: ['claimMigration', 'registerVmm', 'migrateIn'],
    tabs: {
      'User Metadata': [
        new RegExp(`migrate instance .web. to sled .${there.name}.`),
        `${here.name} → ${there.name}`,
        `tell ${there.name} to migrate VMM ${await short(web)} in`,
      ],
    },
  });
  await harness.rests(web);
  scenes.push({
    name: 'update',
    path: await pathOf(harness, workflowIds.update(web), 'moved'),
    finds: ['updateInstance', 'moved'],
    tabs: {
      'User Metadata': [
        /bring the records of instance .web. in line/,
        'bring the records of web in line with what happened',
        'Ended: moved',
      ],
    },
  });

  const shop = await harness.create('shop');
  harness.everywhere(({ agent }) => agent.faults.plant({ call: 'state:running', act: outOfOrder }));
  await refused(harness.client.startInstance(shop));
  const broken = harness.stack.sleds.map(({ name }) => name).join('|');
  scenes.push({
    name: 'unwound-start',
    path: await pathOf(harness, workflowIds.start(shop)),
    tabs: {
      'User Metadata': [
        /start instance .shop./,
        'Ended: unwound',
        'Undoing, newest first',
        /write saga_unwound on VMM/,
      ],
    },
    finds: [
      new RegExp(`the start failed and was undone: sled .{1,2}(${broken}).*the hypervisor is out of order`),
      'beginUnwind',
      'unregisterVmm',
      'finishUnwind',
    ],
  });

  const unwound = `${SEARCH_ATTRIBUTES.outcome} = "unwound" AND WorkflowType = "instanceStart"`;
  await waitUntil(
    async () => (await harness.temporal.workflow.count(unwound)).count > 0,
    'the unwound start was never to be found',
  );
  scenes.push({ name: 'unwound-starts', path: listPath(unwound), finds: [workflowIds.start(shop)] });
  const byInstance = `${SEARCH_ATTRIBUTES.instance} = "web"`;
  scenes.push({
    name: 'story-of-an-instance',
    path: listPath(byInstance),
    finds: [workflowIds.start(web), workflowIds.migrate(web), workflowIds.update(web)],
  });

  scenes.push(await playDrain(harness));

  const quiet = await harness.create('quiet');
  for (const { agent } of harness.stack.sleds)
    agent.faults.plant({ call: 'state:running', instance_name: 'quiet', act: { type: 'drop_before' } });
  const stuck = harness.client.startInstance(quiet).catch(() => {});
  await untilPending(harness, workflowIds.start(quiet), 'runVmm');
  scenes.push({
    name: 'stuck-start',
    path: await pathOf(harness, workflowIds.start(quiet)),
    // Its steps before are markers; the one that is stuck is an activity, in words, with its attempts and its error.
    finds: ['claimStart', 'registerVmm', new RegExp(`tell sled-\\d to run VMM ${await short(quiet)}`)],
    tabs: {
      'User Metadata': [
        /start instance .quiet./,
        new RegExp(`tell sled-\\d to run VMM ${await short(quiet)}`),
        'Running.',
      ],
      'Pending Activities': ['runVmm', /Attempt/, /sled-\d.*PUT \/vmms/],
    },
  });

  const queue = await harness.create('queue');
  harness.everywhere(({ agent }) => {
    agent.faults.plant({ call: 'state:running', act: outOfOrder });
    agent.faults.plant({ call: 'unregister', act: { type: 'refuse', status: 503, message: 'busy' } });
  });
  const failing = harness.client.startInstance(queue).catch(() => {});
  await untilPending(harness, workflowIds.start(queue), 'unregisterVmm');
  scenes.push({
    name: 'compensating',
    path: await pathOf(harness, workflowIds.start(queue)),
    finds: [/unregister VMM \w+ from sled-\d/],
    tabs: { 'User Metadata': [/Compensating, because this failed: tell sled-\d to run VMM/, 'unregister VMM'] },
  });
  return {
    scenes,
    release: async () => {
      harness.everywhere(({ agent }) => agent.faults.clear());
      await Promise.all([failing, stuck]);
    },
  };
}
