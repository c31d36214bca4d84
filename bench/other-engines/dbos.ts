/**
 * DBOS Transact: the workflow and its steps in the process of the front, checkpoints in the same PostgreSQL server.
 * Written as https://docs.dbos.dev/typescript/tutorials/workflow-tutorial advises: the workflow is called directly, each
 * step is `runStep` and named, the workflow's id makes the call idempotent. Step results are committed by PostgreSQL as
 * durably as Mooring's own rows (`synchronous_commit` on).
 */
import { DBOS } from '@dbos-inc/dbos-sdk';
import { startFront } from '../peers/front.ts';
import { createSteps, isFinal, type PartInput, type PartReady, type StartAttempt } from '../peers/steps.ts';
import { runPart } from '../system/child.ts';

/** The pool of DBOS's own database connections: as many as Mooring's worker has for its steps. */
const SYSTEM_POOL = 20;

await runPart<PartInput, PartReady>(async ({ databaseUrl, port }) => {
  const { database, steps, close } = createSteps(databaseUrl);
  const retried = {
    retriesAllowed: true,
    intervalSeconds: 0.1,
    maxAttempts: 10,
    shouldRetry: (error: unknown) => !isFinal(error),
  };

  async function instanceStart(instanceId: string): Promise<void> {
    const workflowId = DBOS.workflowID ?? '';
    const vmmId = await DBOS.randomUUID();
    const attempt: StartAttempt = { instanceId, vmmId, operationId: vmmId, workflowId };
    const claim = await DBOS.runStep(() => steps.claim(attempt), { name: 'claim', ...retried });
    try {
      await DBOS.runStep(() => steps.register(attempt, claim), { name: 'register', ...retried });
      await DBOS.runStep(() => steps.run(attempt, claim), { name: 'run', ...retried });
    } catch (error) {
      await DBOS.runStep(() => steps.beginUnwind(attempt), { name: 'beginUnwind', ...retried });
      await DBOS.runStep(() => steps.unregister(claim), { name: 'unregister', ...retried });
      await DBOS.runStep(() => steps.finishUnwind(attempt, String(error)), { name: 'finishUnwind', ...retried });
      throw error;
    }
  }
  const registered = DBOS.registerWorkflow(instanceStart, { name: 'instanceStart' });
  DBOS.setConfig({
    name: 'bench',
    applicationVersion: '1',
    systemDatabaseUrl: databaseUrl,
    systemDatabasePoolSize: SYSTEM_POOL,
    logLevel: 'error',
    runAdminServer: false,
  });
  await DBOS.launch();
  const front = await startFront({
    db: database.db,
    port,
    async start(instanceId, generation) {
      const handle = await DBOS.startWorkflow(registered, { workflowID: `instance-start/${instanceId}/${generation}` })(
        instanceId,
      );
      await handle.getResult();
    },
  });
  return {
    ready: { url: front.url },
    async stop() {
      await front.stop();
      await DBOS.shutdown();
      await close();
    },
  };
});
