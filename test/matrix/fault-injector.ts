/**
 * Gets between Temporal and the steps: fails, holds, repeats or drops single executions of a step of one instance, and
 * says which steps ran and which calls to sleds they made. Its plans are plain data, so that a worker in another process
 * can be given them.
 */
import { AsyncLocalStorage } from 'node:async_hooks';
import { EventEmitter } from 'node:events';
import { ApplicationFailure } from '@temporalio/common';
import {
  type ActivityInterceptorsFactory,
  DefaultLogger,
  makeTelemetryFilterString,
  Runtime,
} from '@temporalio/worker';
import { SledClient } from '../../activities/sled-client.ts';
import { StepSleds } from '../../activities/step-sleds.ts';
import { waitUntil } from '../../platform/host/child-process.ts';
import type { FaultCall } from '../../sled-agent/faults.ts';
import { unwindError } from '../support/saga-steps.ts';

/** What is done to executions of a step. */
export interface FaultPlan {
  readonly id: string;
  /** `null`: of any. */
  readonly workflowType: string | null;
  readonly activity: string;
  /** An instance's id, or what the workflow's id contains. */
  readonly subject: string;
  /** How many executions it is for; one by default. Plans are used in the order in which they are made. */
  readonly times?: number;
  /** Only notes executions, every one, beside what another plan does to them. */
  readonly observe?: boolean;
  /** Waits before it runs, until released. */
  readonly holdBefore?: boolean;
  /** How it runs; `never`: it takes no effect. Default `once`. */
  readonly run?: 'once' | 'twice' | 'twice at once' | 'never';
  /** Waits after it ran, until released. */
  readonly holdAfter?: boolean;
  /** How it ends; as it does by itself when absent. */
  readonly fail?: 'retryable' | 'final';
}

/** How far an execution under a plan has come. */
export type Moment = 'arrived' | 'ran' | 'ended';

/** A step that was seen, with the calls to sleds that it made. */
export interface SeenStep {
  readonly workflowType: string;
  readonly activity: string;
  /** It ran within its workflow task. */
  readonly isLocal: boolean;
  readonly calls: Set<FaultCall>;
}

/** Where a step ran, and which VMM it was about. */
export interface Execution {
  readonly workflowId: string;
  readonly runId: string;
  readonly vmmId: string | null;
}

const INJECTED = unwindError('a fault of the test');
const MOMENT_MS = 60_000;
const UUID = /[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}/;

/** A step was never executed as it was planned: nothing is shown about it. */
export class NotReached extends Error {
  override readonly name = 'NotReached';
}

export class FaultInjector {
  readonly #plans: { plan: FaultPlan; left: number }[] = [];
  readonly #reached = new Map<string, number>();
  readonly #released = new Set<string>();
  readonly #executions = new Map<string, Execution>();
  readonly #instances = new Map<string, string>();
  readonly #seen = new Map<string, SeenStep[]>();
  readonly #changes = new EventEmitter().setMaxListeners(0);

  /** Adds a plan. */
  plan(plan: FaultPlan): void {
    this.#plans.push({ plan, left: plan.times ?? 1 });
  }

  /** Lets the executions of a plan go on that wait, or will wait, before or after they run. */
  release(planId: string, point: 'before' | 'after'): void {
    this.#released.add(`${planId}/${point}`);
    this.#changes.emit('change');
  }

  /** Takes a plan away: no further execution is meant. */
  drop(planId: string): void {
    for (const entry of this.#plans) if (entry.plan.id === planId) entry.left = 0;
  }

  /** Lets everything go, and forgets what was planned. */
  releaseAll(): void {
    for (const { plan } of this.#plans) for (const point of ['before', 'after'] as const) this.release(plan.id, point);
    this.#plans.length = 0;
  }

  /** How often executions under a plan came to a moment. */
  count(planId: string, moment: Moment): number {
    return this.#reached.get(`${planId}/${moment}`) ?? 0;
  }

  /** Waits until `times` executions under a plan have come to a moment. Throws when that never happens. */
  async waitFor(planId: string, moment: Moment, times = 1): Promise<void> {
    await waitUntil(() => this.count(planId, moment) >= times, '', MOMENT_MS, 25).catch(() => {
      throw new NotReached(`its step never ${moment}`);
    });
  }

  /** The steps that were seen for an instance. */
  seen(instanceId: string): readonly SeenStep[] {
    return this.#seen.get(instanceId) ?? [];
  }

  /** The first execution under a plan. Throws when there was none. */
  execution(planId: string): Execution {
    const found = this.#executions.get(planId);
    if (found === undefined) throw new Error(`nothing was executed under plan "${planId}"`);
    return found;
  }

  /** Hears of every moment that an execution under a plan comes to. */
  onMoment(listener: (planId: string, moment: Moment) => void): void {
    this.#changes.on('moment', listener);
  }

  /** Notes a moment; also one that an injector in another process has reported. */
  reached(planId: string, moment: Moment, execution: Execution): void {
    if (!this.#executions.has(planId)) this.#executions.set(planId, execution);
    const key = `${planId}/${moment}`;
    this.#reached.set(key, (this.#reached.get(key) ?? 0) + 1);
    this.#changes.emit('moment', planId, moment);
  }

  /** What a worker is given. */
  interceptors(): ActivityInterceptorsFactory {
    return ({ info }) => ({
      inbound: {
        execute: async (input, next) => {
          const workflowType = info.workflowType ?? '';
          const workflowId = info.workflowExecution?.workflowId ?? '';
          const instanceId = this.#instanceOf(input.args[0], workflowId);
          const step: SeenStep = { workflowType, activity: info.activityType, isLocal: info.isLocal, calls: new Set() };
          const steps = this.#seen.get(instanceId) ?? [];
          this.#seen.set(instanceId, steps);
          steps.push(step);
          const run = () => currentStep.run(step, () => next(input));

          const { vmmId = null } = (input.args[0] ?? {}) as { vmmId?: string };
          const execution = { workflowId, runId: info.workflowExecution?.runId ?? '', vmmId };
          const [plan, observers] = this.#take(workflowType, info.activityType, [instanceId, workflowId]);
          const concerned = plan === null ? observers : [plan, ...observers];
          const note = (moment: Moment) => {
            for (const { id } of concerned) this.reached(id, moment, execution);
          };
          note('arrived');
          try {
            if (plan === null) return await run();
            if (plan.holdBefore) await this.#gate(`${plan.id}/before`);
            const outcome = await this.#run(plan, run).then(
              (value) => ({ value }),
              (error: unknown) => ({ error }),
            );
            note('ran');
            if (plan.holdAfter) await this.#gate(`${plan.id}/after`);
            if (plan.fail !== undefined) throw injectedFailure(plan.fail);
            if ('error' in outcome) throw outcome.error;
            return outcome.value;
          } finally {
            note('ended');
          }
        },
      },
    });
  }

  async #run(plan: FaultPlan, run: () => Promise<unknown>): Promise<unknown> {
    switch (plan.run ?? 'once') {
      case 'once':
        return run();
      case 'twice':
        await run();
        return run();
      case 'twice at once':
        return (await Promise.all([run(), run()]))[1];
      case 'never':
        return undefined;
    }
  }

  /** The plan for an execution, and the plans that only look on. */
  #take(workflowType: string, activity: string, subjects: readonly string[]): [FaultPlan | null, FaultPlan[]] {
    const matching = this.#plans.filter(
      ({ plan }) =>
        (plan.workflowType === null || plan.workflowType === workflowType) &&
        plan.activity === activity &&
        subjects.some((subject) => subject.includes(plan.subject)),
    );
    const observers = matching.filter(({ plan }) => plan.observe).map(({ plan }) => plan);
    const found = matching.find(({ plan, left }) => left > 0 && !plan.observe);
    if (found !== undefined) found.left -= 1;
    return [found?.plan ?? null, observers];
  }

  async #gate(name: string): Promise<void> {
    while (!this.#released.has(name)) await new Promise((resolve) => this.#changes.once('change', resolve));
  }

  /** The instance that a step is about; steps that name a VMM alone come after one that named both. */
  #instanceOf(argument: unknown, workflowId: string): string {
    const { instanceId, vmmId } = (argument ?? {}) as { instanceId?: string; vmmId?: string };
    if (instanceId !== undefined && vmmId !== undefined) this.#instances.set(vmmId, instanceId);
    return instanceId ?? this.#instances.get(vmmId ?? '') ?? UUID.exec(workflowId)?.[0] ?? workflowId;
  }
}

function injectedFailure(kind: 'retryable' | 'final'): ApplicationFailure {
  return ApplicationFailure.create({
    type: 'Injected',
    message: INJECTED.message,
    nonRetryable: kind === 'final',
    details: [INJECTED],
  });
}

/** The SDK warns of every attempt that comes too late: here they are what is wanted. Before the first worker of a process. */
export function silenceLateAttempts(): void {
  Runtime.install({
    logger: new DefaultLogger('ERROR'),
    telemetryOptions: { logging: { filter: makeTelemetryFilterString({ core: 'ERROR', other: 'ERROR' }) } },
    shutdownSignals: [],
  });
}

const currentStep = new AsyncLocalStorage<SeenStep>();

/**
 * Has the steps of this process ask every sled, also one that was silent a moment ago: else a fault of one instance would keep
 * the steps of others from taking effect. Once a process.
 */
export function askSilentSleds(): void {
  StepSleds.prototype.isSilent = () => false;
}

/** Has every call of this process to a sled noted with the step that makes it. Once a process. */
export function noteSledCalls(): void {
  const note = (call: FaultCall) => currentStep.getStore()?.calls.add(call);
  const { register, unregister, setState, readState, readInventory } = SledClient.prototype;
  SledClient.prototype.register = function (...args) {
    note('register');
    return register.apply(this, args);
  };
  SledClient.prototype.unregister = function (...args) {
    note('unregister');
    return unregister.apply(this, args);
  };
  SledClient.prototype.setState = function (...args) {
    note(`state:${args[2].type}`);
    return setState.apply(this, args);
  };
  SledClient.prototype.readState = function (...args) {
    note('get');
    return readState.apply(this, args);
  };
  SledClient.prototype.readInventory = function (...args) {
    note('list');
    return readInventory.apply(this, args);
  };
}
