/**
 * A stack on which things happen in the order that a recording wants, whatever the machine has to do: steps wait until they
 * are let go, a workflow's end waits for what is to come before it, and no loop does anything by itself.
 */
import { randomUUID } from 'node:crypto';
import { fileURLToPath } from 'node:url';
import type { InjectedSinks } from '@temporalio/worker';
import { askSilentSleds, FaultInjector } from '../matrix/fault-injector.ts';
import { type Harness, startHarness } from '../support/harness.ts';
import type { RecorderSinks } from './completion-sink.ts';

/** An update continues as new from this many events on: soon enough to record it. */
const SUGGEST_CONTINUE_AS_NEW_EVENTS = 200;
/** No longer than the silent ones need, in milliseconds. */
const REGISTER_TIMEOUT_MS = 6_000;

/** How often the processes look at what is around them, in milliseconds: what is taken from there is soon missed. */
const LOOK_MS = 500;

/** A step that waits. */
export interface HeldStep {
  /** Resolves when it has come to where it waits: within its workflow task, where it was not an activity before. */
  readonly reached: Promise<void>;
  /** Resolves when it was given up there, and waits as an activity. */
  readonly asActivity: Promise<void>;
  /** Lets it go on. */
  release(): void;
}

export interface Recorder {
  readonly harness: Harness;
  /**
   * Holds a step of an instance (or of a workflow whose id contains `subject`) before it runs, and every further attempt,
   * since one that waits for long times out; `skip` attempts before it pass. `workflowType`: only there.
   */
  hold(step: string, subject: string, options?: { readonly skip?: number; readonly workflowType?: string }): HeldStep;
  /** Does something when a workflow has decided to complete and before the server gets it, once. */
  atCompletion(workflowId: string, act: () => Promise<void>): void;
  /** Lets everything go on, and takes every fault away. */
  clear(): Promise<void>;
}

/** Brings the stack up. */
export async function startRecorder(): Promise<Recorder> {
  const injector = new FaultInjector();
  askSilentSleds();
  const completions = new Map<string, () => Promise<void>>();
  const sinks: InjectedSinks<RecorderSinks> = {
    recorder: {
      completes: {
        callDuringReplay: false,
        async fn({ workflowId }: { workflowId: string }) {
          const act = completions.get(workflowId);
          completions.delete(workflowId);
          await act?.();
        },
      },
    },
  };
  const harness = await startHarness({
    registerTimeoutMs: REGISTER_TIMEOUT_MS,
    temporalDynamicConfig: { 'limit.historyCount.suggestContinueAsNew': SUGGEST_CONTINUE_AS_NEW_EVENTS },
    reconcileEveryMs: 0,
    lookEveryMs: LOOK_MS,
    metricsListen: '127.0.0.1:0',
    testInterceptors: {
      activity: [injector.interceptors()],
      workflowModules: [fileURLToPath(new URL('./completion-sink.ts', import.meta.url))],
      sinks,
    },
  });
  return {
    harness,
    hold(step, subject, { skip = 0, workflowType } = {}) {
      const plan = { activity: step, subject, workflowType: workflowType ?? null };
      if (skip > 0) injector.plan({ ...plan, id: randomUUID(), times: skip });
      const id = randomUUID();
      injector.plan({ ...plan, id, holdBefore: true, times: Number.POSITIVE_INFINITY });
      const reached = injector.waitFor(id, 'arrived');
      const asActivity = injector.waitFor(id, 'arrived', 2);
      for (const moment of [reached, asActivity]) moment.catch(() => {});
      return {
        reached,
        asActivity,
        release: () => {
          injector.drop(id);
          injector.release(id, 'before');
        },
      };
    },
    atCompletion: (workflowId, act) => void completions.set(workflowId, act),
    async clear() {
      injector.releaseAll();
      completions.clear();
      harness.everywhere(({ agent }) => agent.faults.clear());
      await harness.stack.worker.setUpdates(true);
    },
  };
}
