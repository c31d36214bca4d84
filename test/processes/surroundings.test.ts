/**
 * What Mooring needs around it vanishes while it works: each thing, removed and then refused, under each kind of work. On a
 * Temporal server of the test's own, which it may also empty.
 */
import type { Connection } from '@temporalio/client';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { RECONCILERS } from '../../model/reconcilers.ts';
import { SEARCH_ATTRIBUTES } from '../../model/search-attributes.ts';
import { scheduleOf, TASK_QUEUE, workflowIds } from '../../model/workflow-names.ts';
import { freePort } from '../../platform/host/child-process.ts';
import { createLog } from '../../platform/telemetry/log.ts';
import { findTemporalBinary } from '../../stack/temporal-binary.ts';
import { startTemporalServer, type TemporalServer } from '../../stack/temporal-server.ts';
import { connectTemporalClient } from '../../temporal/client.ts';
import { readBuilds } from '../../temporal/deployment.ts';
import { examineSurroundings } from '../../temporal/surroundings.ts';
import { type Harness, startHarness } from '../support/harness.ts';
import {
  ATTRIBUTE_NAMES,
  askWhetherReady,
  giveAttributesBack,
  registeredAttributes,
  removeAttributes,
  untilWithoutAttributes,
} from '../support/search-attributes.ts';
import { eventually } from '../support/wait.ts';

const LOOK_MS = 400;

let port: number;
let server: TemporalServer;
let harness: Harness;
beforeAll(async () => {
  port = await freePort();
  server = await startServer();
  harness = await startHarness({
    sleds: 2,
    lookEveryMs: LOOK_MS,
    metricsListen: '127.0.0.1:0',
    reconcileEveryMs: 1_000,
    registerTimeoutMs: 60_000,
    env: { TEMPORAL_ADDRESS: server.address, MOORING_BUILD_ID: 'one' },
  });
});
afterAll(async () => {
  await harness?.close();
  await server?.stop();
});

async function startServer(): Promise<TemporalServer> {
  const { path: binary } = await findTemporalBinary();
  return startTemporalServer({ binary, port, uiPort: null });
}

const allReady = () =>
  eventually(
    async () => (await askWhetherReady(harness)).every(({ status, text }) => status === 200 && text === 'ready\n'),
    'the processes never called themselves ready',
  );

/**
 * Every kind of work that people ask for: each must end while something optional is missing. The last one holds up starts until
 * it is let go on.
 */
const WORK: Readonly<Record<string, () => Promise<() => Promise<void>>>> = {
  'a start': async () => {
    const id = await harness.create();
    return async () => {
      await harness.client.startInstance(id);
      await harness.shows(id, 'running');
    };
  },
  'a stop': async () => {
    const id = await harness.running();
    return async () => {
      await harness.client.stopInstance(id);
      await harness.shows(id, 'stopped');
    };
  },
  'a migration': async () => {
    const id = await harness.running();
    const { there } = await harness.placed(id);
    return async () => {
      await harness.client.migrateInstance(id, there.id);
      await eventually(async () => (await harness.record(id)).active?.sledId === there.id, 'it never moved');
      await harness.rests(id);
    };
  },
  'an update and an unregistration over a leftover': async () => {
    const id = await harness.create();
    return async () => {
      harness.everywhere(({ agent }) =>
        agent.faults.plant({ call: 'state:running', act: { type: 'refuse', status: 409 }, times: 1 }),
      );
      await harness.client.startInstance(id).catch(() => {});
      harness.everywhere(({ agent }) => agent.faults.clear());
      await harness.client.deleteInstance(id);
      await harness.rests(id);
    };
  },
  'a loop that is run by hand': async () => async () => {
    expect((await harness.client.runReconciler('reaper')).summary).toContain('looked for');
  },
  'a loop on its schedule': async () => async () => {
    const began = Date.now();
    await eventually(async () => {
      const updater = (await harness.client.listReconcilers()).find(({ name }) => name === 'updater');
      return Date.parse(updater?.time_last_run ?? '') > began && updater?.last_summary !== null;
    }, 'the loop never ran');
  },
  'a start whose step goes on as an activity': async () => {
    const id = await harness.create();
    harness.everywhere(({ agent }) =>
      agent.faults.plant({ call: 'state:running', act: { type: 'refuse', status: 503 } }),
    );
    const { operationId } = await harness.client.startInstance(id, { waitSeconds: 0 });
    const handle = harness.temporal.workflow.getHandle(workflowIds.start(id), operationId ?? '');
    await eventually(
      async () => ((await handle.describe()).raw.pendingActivities ?? []).length > 0,
      'its step never went on as an activity',
    );
    return async () => {
      harness.everywhere(({ agent }) => agent.faults.clear());
      expect(await handle.result()).toMatchObject({ outcome: 'started' });
      await harness.shows(id, 'running');
    };
  },
};

describe('search attributes', () => {
  test.each([
    { what: 'one that every start carries', names: [SEARCH_ATTRIBUTES.instance], refused: false },
    { what: 'one that is only written', names: [SEARCH_ATTRIBUTES.failedStep], refused: true },
    { what: 'the outcome', names: [SEARCH_ATTRIBUTES.outcome], refused: true },
    { what: 'all of them', names: ATTRIBUTE_NAMES, refused: false },
    { what: 'all of them', names: ATTRIBUTE_NAMES, refused: true },
  ])('$what, removed while all kinds of work begin and end (refused: $refused)', async ({ names, refused }) => {
    await allReady();
    const prepared: [string, () => Promise<void>][] = [];
    for (const [name, prepare] of Object.entries(WORK)) prepared.push([name, await prepare()]);
    await removeAttributes(harness, names, refused);
    for (const [name, work] of prepared.reverse())
      await work().catch((error: unknown) => {
        throw new Error(`${name}: ${error instanceof Error ? error.message : error}`, { cause: error });
      });
    if (refused) {
      await untilWithoutAttributes(harness);
      const connection = harness.temporal.connection as Connection;
      expect(await examineSurroundings(harness.database.db, connection, harness.temporal)).toContainEqual(
        expect.objectContaining({
          what: 'search_attributes',
          needed: false,
          problem: expect.stringContaining(names[0] ?? ''),
        }),
      );
    }
    await giveAttributesBack(harness);
    await allReady();
  });

  test('a workflow that continues as new without them', async () => {
    await allReady();
    const [id] = [await harness.running(), await harness.running()];
    const { here } = await harness.placed(id);
    harness.everywhere(({ agent }) => agent.faults.plant({ call: 'register', act: { type: 'refuse', status: 503 } }));
    const drain = await harness.temporal.workflow.start('sledDrain', {
      workflowId: workflowIds.drain(here.id),
      taskQueue: TASK_QUEUE,
      args: [{ sledId: here.id, sledName: here.name, parallel: 1, instancesPerRun: 1 }],
    });
    // What earlier tests have left on the sled is drained, too.
    await eventually(async () => {
      for await (const { run_state } of harness.client.listInstances({ project: 'default' }))
        if (run_state === 'migrating') return true;
      return false;
    }, 'the drain never began');
    await removeAttributes(harness, ATTRIBUTE_NAMES, true);
    harness.everywhere(({ agent }) => agent.faults.clear());
    expect(await drain.result()).toMatchObject({ state: 'drained' });
    await giveAttributesBack(harness);
    await allReady();
  });
});

test('a schedule that is deleted is made again', async () => {
  await allReady();
  for (const name of RECONCILERS)
    await harness.temporal.schedule.getHandle(scheduleOf(harness.installation, name)).delete();
  await eventually(
    async () => (await harness.client.listReconcilers()).every(({ scheduled }) => scheduled),
    'a schedule was never made again',
  );
  await allReady();
});

test('Temporal comes back empty at the same address: everything works again, and no process was restarted', async () => {
  await allReady();
  const stopping = await harness.running();
  const { worker } = harness.stack;
  await server.kill();
  server = await startServer();
  // What a caller sees meanwhile is 503, which says that it may try again.
  let id = '';
  await eventually(async () => {
    id = await harness.create().catch(() => '');
    return id !== '';
  }, 'the API never took a call');
  await eventually(
    () =>
      harness.client.startInstance(id).then(
        () => true,
        (error: { status?: number }) => {
          expect(error.status).toBe(503);
          return false;
        },
      ),
    'a start never went through',
  );
  await harness.shows(id, 'running');
  await harness.client.stopInstance(stopping);
  await harness.shows(stopping, 'stopped');
  await eventually(
    async () => (await harness.client.listReconcilers()).every((loop) => loop.scheduled && loop.time_last_run !== null),
    'the loops never ran',
  );
  expect(await readBuilds(harness.temporal, harness.installation)).toEqual([
    expect.objectContaining({ buildId: worker.buildId, status: 'current' }),
  ]);
  expect(await registeredAttributes(harness)).toEqual(expect.arrayContaining([...ATTRIBUTE_NAMES]));
  await allReady();
});

test('two that connect at once to a namespace without attributes can both use them', async () => {
  await allReady();
  await removeAttributes(harness, ATTRIBUTE_NAMES, false);
  const log = createLog('test', 'silent');
  const both = await Promise.all(
    [1, 2].map(() => connectTemporalClient(harness.stack.temporal, harness.database.db, log)),
  );
  expect(both.map(({ searchAttributes }) => searchAttributes.usable)).toEqual([true, true]);
  await Promise.all(both.map(({ close }) => close()));
  await allReady();
});
