/** Every activity of the worker is measured, and what it throws is classed: none is registered bare. */
import { ApplicationFailure } from '@temporalio/common';
import { MockActivityEnvironment } from '@temporalio/testing';
import { DefaultLogger } from '@temporalio/worker';
import { expect, test } from 'vitest';
import type { ActivityContext } from '../../activities/context.ts';
import { createDrainActivities } from '../../activities/drain.ts';
import { createWatchActivities } from '../../activities/migration-watch.ts';
import { createReconcilerActivities } from '../../activities/reconcilers.ts';
import { createSagaActivities } from '../../activities/sagas.ts';
import { SledError } from '../../activities/sled-client.ts';
import { ONLOOKER_STEPS, SAGA_STEPS } from '../../model/saga-steps.ts';
import { Metrics } from '../../platform/telemetry/metrics.ts';

/** Whatever is asked of it throws what a silent sled's client throws. */
const broken: unknown = new Proxy(() => {}, {
  get: () => broken,
  apply: () => {
    throw new SledError('unavailable', 'nothing answers');
  },
});
const metrics = new Metrics();
const context = { db: broken, sleds: broken, workflows: broken, metrics } as ActivityContext;
const activities: Readonly<Record<string, (request: unknown) => Promise<unknown>>> = {
  ...createSagaActivities(context),
  ...createReconcilerActivities(context),
  ...createDrainActivities(context),
  ...createWatchActivities(context),
} as never;

test.each(Object.keys(activities))('%s', async (name) => {
  const environment = new MockActivityEnvironment({ attempt: 2 }, { logger: new DefaultLogger('ERROR', () => {}) });
  const error: unknown = await environment
    .run(
      (activities as Record<string, (request: unknown) => Promise<unknown>>)[name] as never,
      {
        instanceId: 'i',
        vmmId: 'v',
        waitMs: 0,
        forMs: 0,
      } as never,
    )
    .then(
      () => null,
      (thrown: unknown) => thrown,
    );
  expect(error).toBeInstanceOf(ApplicationFailure);
  expect(error).toMatchObject({ type: 'SledUnavailable', nonRetryable: false });
  const { values } = await metrics.stepSeconds.get();
  const counted = values.filter(({ labels, metricName }) => labels.step === name && metricName?.endsWith('_count'));
  expect(counted).toMatchObject([{ value: 1, labels: { outcome: 'retry' } }]);
});

test('these are all the steps that are declared', () => {
  const declared = Object.values({ ...SAGA_STEPS, ...ONLOOKER_STEPS }).flatMap(({ steps, compensations }) =>
    [...steps, ...compensations].map(({ activity }) => activity),
  );
  expect(Object.keys(activities).sort()).toEqual([...new Set<string>(declared)].sort());
});
