/**
 * Restate: one server as npm ships it, the saga as a handler of a virtual object keyed by the instance (so that two starts
 * of one instance queue), each step a named `ctx.run`, compensations in the handler, as
 * https://docs.restate.dev/guides/sagas advises. Its journal is RocksDB on disk, flushed to the operating system at every
 * append and synced by its defaults.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdir } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { arch, platform } from 'node:os';
import { dirname, join } from 'node:path';
import * as restate from '@restatedev/restate-sdk';
import { request } from 'undici';
import { freePort, waitUntil } from '../../platform/host/child-process.ts';
import { startFront } from '../peers/front.ts';
import { createSteps, isFinal, type PartInput, type PartReady, type StartAttempt } from '../peers/steps.ts';
import { runPart } from '../system/child.ts';

// The SDK uses what Node 20 lacks.
if (!('withResolvers' in Promise)) {
  Object.defineProperty(Promise, 'withResolvers', {
    value<T>() {
      let settle: Pick<PromiseWithResolversLike<T>, 'resolve' | 'reject'> | undefined;
      const promise = new Promise<T>((resolve, reject) => {
        settle = { resolve, reject };
      });
      return { promise, ...settle };
    },
  });
}
interface PromiseWithResolversLike<T> {
  resolve(value: T | PromiseLike<T>): void;
  reject(reason?: unknown): void;
}

const RETRY = { initialRetryInterval: { milliseconds: 100 }, retryIntervalFactor: 2, maxRetryInterval: { seconds: 5 } };

await runPart<PartInput, PartReady>(async ({ databaseUrl, port, dataDir }) => {
  const { database, steps, close } = createSteps(databaseUrl);

  /** A step that is final ends the handler's retries: Restate tries everything else again. */
  function final<T>(act: () => Promise<T>): () => Promise<T> {
    return async () => {
      try {
        return await act();
      } catch (error) {
        if (isFinal(error)) throw new restate.TerminalError(String(error), { errorCode: 503 });
        throw error;
      }
    };
  }

  const instance = restate.object({
    name: 'instance',
    handlers: {
      start: async (ctx: restate.ObjectContext): Promise<void> => {
        const vmmId = ctx.rand.uuidv4();
        const attempt: StartAttempt = {
          instanceId: ctx.key,
          vmmId,
          operationId: vmmId,
          workflowId: ctx.request().id.toString(),
        };
        const claim = await ctx.run(
          'claim',
          final(() => steps.claim(attempt)),
          RETRY,
        );
        try {
          await ctx.run(
            'register',
            final(() => steps.register(attempt, claim)),
            RETRY,
          );
          await ctx.run(
            'run',
            final(() => steps.run(attempt, claim)),
            RETRY,
          );
        } catch (error) {
          if (!(error instanceof restate.TerminalError)) throw error;
          await ctx.run('beginUnwind', () => steps.beginUnwind(attempt), RETRY);
          await ctx.run('unregister', () => steps.unregister(claim), RETRY);
          await ctx.run('finishUnwind', () => steps.finishUnwind(attempt, String(error)), RETRY);
          throw error;
        }
      },
    },
  });

  const ports = {
    ingress: await freePort(),
    admin: await freePort(),
    node: await freePort(),
    endpoint: await freePort(),
  };
  const server = await startServer(dataDir, ports);
  await restate.serve({ services: [instance], port: ports.endpoint });
  await waitUntil(
    async () => {
      const answer = await request(`http://127.0.0.1:${ports.admin}/deployments`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ uri: `http://127.0.0.1:${ports.endpoint}` }),
      }).catch(() => null);
      await answer?.body.dump();
      return answer !== null && answer.statusCode < 300;
    },
    'the Restate server took no deployment',
    60_000,
    200,
  );
  const front = await startFront({
    db: database.db,
    port,
    async start(instanceId) {
      const answer = await request(`http://127.0.0.1:${ports.ingress}/instance/${instanceId}/start`, {
        method: 'POST',
      });
      const text = await answer.body.text();
      if (answer.statusCode >= 300) throw new Error(text);
    },
  });
  return {
    ready: { url: front.url, serverPid: server.pid ?? 0 },
    async stop() {
      await front.stop();
      const gone = new Promise((resolve) => server.once('exit', resolve));
      server.kill('SIGKILL');
      await gone;
      await close();
    },
  };
});

async function startServer(
  dataDir: string,
  ports: { ingress: number; admin: number; node: number },
): Promise<ChildProcess> {
  const library = createRequire(import.meta.url).resolve('@restatedev/restate-server/package.json');
  const native = createRequire(library).resolve(`@restatedev/restate-server-${platform()}-${arch()}/package.json`);
  await mkdir(dataDir, { recursive: true });
  const server = spawn(join(dirname(native), 'bin', 'restate-server'), ['--base-dir', join(dataDir, 'restate')], {
    stdio: 'ignore',
    env: {
      ...process.env,
      RESTATE_ADMIN__BIND_ADDRESS: `127.0.0.1:${ports.admin}`,
      RESTATE_INGRESS__BIND_ADDRESS: `127.0.0.1:${ports.ingress}`,
      RESTATE_BIND_ADDRESS: `127.0.0.1:${ports.node}`,
      RESTATE_ADVERTISED_ADDRESS: `http://127.0.0.1:${ports.node}`,
      RESTATE_LOG_FILTER: 'error',
      DO_NOT_TRACK: '1',
    },
  });
  process.once('exit', () => server.kill('SIGKILL'));
  return server;
}
