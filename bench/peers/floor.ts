/** The floor: the start as a plain async function. What it has done is lost with its process. */
import { randomUUID } from 'node:crypto';
import { runPart } from '../system/child.ts';
import { startFront } from './front.ts';
import { createSteps, type PartInput, type PartReady } from './steps.ts';

await runPart<PartInput, PartReady>(async ({ databaseUrl, port }) => {
  const { database, steps, close } = createSteps(databaseUrl);
  const front = await startFront({
    db: database.db,
    port,
    async start(instanceId) {
      const workflowId = `floor/${instanceId}`;
      const attempt = { instanceId, vmmId: randomUUID(), operationId: randomUUID(), workflowId };
      const claim = await steps.claim(attempt);
      try {
        await steps.register(attempt, claim);
        await steps.run(attempt, claim);
      } catch (error) {
        await steps.beginUnwind(attempt);
        await steps.unregister(claim);
        await steps.finishUnwind(attempt, String(error));
        throw error;
      }
    },
  });
  return {
    ready: { url: front.url },
    async stop() {
      await front.stop();
      await close();
    },
  };
});
