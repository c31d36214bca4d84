/**
 * What every workflow shows in the Web UI, without a line of its own: a summary on each activity and timer, its progress
 * as current details, and its search attributes. Bundled with the workflows (`workflowInterceptorModules`).
 *
 * Summaries and details are metadata: they add no event, and no history depends on them. An upsert is a command, and made
 * once, at the end; also when a step goes on as an activity, since it may then be looked for. It is made only in a run that was
 * started with attributes, as its memo notes (one on a server that doesn't know them runs without), and in those of schedules.
 *
 * The attributes are optional, and may vanish from the server at any moment: then an upsert fails the workflow task that it is
 * made in, and a task that fails is done again, for ever. So one is made only where a step of the same task has said that they
 * are there: the worker adds to a step's result when they are not (model/attribute-notice.ts), and where no step has just
 * spoken it is asked. If they vanish after that, the task fails, its steps run again, and say so. What a step says is
 * recorded with its result, so that a replay decides the same.
 */
import {
  defineSearchAttributeKey,
  SearchAttributeType,
  type SearchAttributeUpdatePair,
  TemporalFailure,
} from '@temporalio/common';
import {
  type ActivityInput,
  CancellationScope,
  ContinueAsNew,
  type ContinueAsNewInput,
  isCancellation,
  type LocalActivityInput,
  metricMeter,
  type Next,
  proxyLocalActivities,
  type SignalInput,
  setCurrentDetails,
  type TimerInput,
  upsertSearchAttributes,
  type WorkflowExecuteInput,
  type WorkflowInboundCallsInterceptor,
  type WorkflowInterceptors,
  type WorkflowOutboundCallsInterceptor,
  workflowInfo,
} from '@temporalio/workflow';
import { ASK_ATTRIBUTES, readNotice } from '../model/attribute-notice.ts';
import { operationOutcomeOf } from '../model/failures.ts';
import { collectFacts, describeStep, type SagaFacts, SagaStory } from '../model/saga-story.ts';
import {
  ATTRIBUTES_MEMO,
  readAttributesMemo,
  SEARCH_ATTRIBUTES,
  type SearchAttribute,
} from '../model/search-attributes.ts';
import { RECONCILER_WORKFLOWS } from '../model/workflow-names.ts';
import { failureTypeOf, messageOf } from './failures.ts';

/** A local activity (worker/attribute-notices.ts), once; who gets no answer goes without. */
const { [ASK_ATTRIBUTES]: askUsable } = proxyLocalActivities<{ [ASK_ATTRIBUTES](): Promise<boolean> }>({
  startToCloseTimeout: '2s',
  retry: { maximumAttempts: 1 },
});

/** The workflows that schedules start, which carry no attributes: so that a schedule can't be kept from starting them. */
const SCHEDULED: ReadonlySet<string> = new Set(Object.values(RECONCILER_WORKFLOWS));
/** The workflow that must end in the moment in which it finds that nobody has signalled it. */
const SIGNALLED = 'instanceUpdate';

const keyOf = (attribute: SearchAttribute) =>
  defineSearchAttributeKey(SEARCH_ATTRIBUTES[attribute], SearchAttributeType.KEYWORD);

class ProgressInterceptor implements WorkflowInboundCallsInterceptor, WorkflowOutboundCallsInterceptor {
  readonly #workflowType = workflowInfo().workflowType;
  #story = new SagaStory(this.#workflowType, {});
  /** The attributes as the server has them; `null` in a run that was started without. */
  #known: Map<SearchAttribute, string> | null = null;
  /** What is sure of the subject: an argument may speak of a VMM that is never made. */
  #sure: SagaFacts = {};
  #upsertedOnce = false;
  /**
   * What the step that has just ended within its workflow task said of the attributes; `null` once anything else has happened, as
   * that may have been in another task. Not told apart by the length of the history: a replay may see another one.
   */
  #told: boolean | null = null;
  /**
   * The story as it is when somebody asks: making Markdown of it at each step would be work that nobody looks at. The SDK keeps
   * the details as they are, and makes JSON of them to answer a query.
   */
  readonly #details: unknown = { toJSON: () => this.#story.toMarkdown() };

  async execute(input: WorkflowExecuteInput, next: Next<WorkflowInboundCallsInterceptor, 'execute'>): Promise<unknown> {
    // Not in the constructor: the first event has not been read by then.
    const noted = readAttributesMemo(workflowInfo().memo);
    this.#known = noted ?? (SCHEDULED.has(this.#workflowType) ? new Map() : null);
    this.#sure = factsOf(noted ?? new Map());
    this.#story = new SagaStory(this.#workflowType, this.#sure);
    this.#collect(input.args[0]);
    // What the workflow sets as its details by itself counts for more than its steps.
    this.#show();
    try {
      const result = await next(input);
      this.#collect(result);
      await this.#end({ outcome: outcomeOf(result) });
      return result;
    } catch (error) {
      if (!(error instanceof ContinueAsNew)) await this.#fail(error);
      throw error;
    }
  }

  /** The next run begins with this one's attributes, which the server would refuse as it refuses an upsert. */
  async continueAsNew(
    input: ContinueAsNewInput,
    next: Next<WorkflowOutboundCallsInterceptor, 'continueAsNew'>,
  ): Promise<never> {
    if (this.#known === null || (await this.#mayUpsert())) return next(input);
    const memo = { ...workflowInfo().memo, [ATTRIBUTES_MEMO]: null };
    return next({ ...input, options: { ...input.options, memo, typedSearchAttributes: [] } });
  }

  scheduleActivity(
    input: ActivityInput,
    next: Next<WorkflowOutboundCallsInterceptor, 'scheduleActivity'>,
  ): Promise<unknown> {
    const begin = async () => {
      try {
        return await this.#step(input, (summary) => next({ ...input, options: { summary, ...input.options } }));
      } finally {
        this.#forget();
        // Not at its end, where a signal that arrives while the worker is asked would be lost.
        if (this.#workflowType === SIGNALLED) await this.#mayUpsert();
      }
    };
    const upserted = this.#upsertedOnce ? null : this.#upsert(attributesOf(this.#sure));
    return upserted === null ? begin() : upserted.then(begin);
  }

  scheduleLocalActivity(
    input: LocalActivityInput,
    next: Next<WorkflowOutboundCallsInterceptor, 'scheduleLocalActivity'>,
  ): Promise<unknown> {
    if (input.activityType === ASK_ATTRIBUTES)
      return next({ ...input, options: { summary: 'ask whether search attributes can be written', ...input.options } });
    return this.#step(input, (summary) => next({ ...input, options: { summary, ...input.options } }), true);
  }

  handleSignal(input: SignalInput, next: Next<WorkflowInboundCallsInterceptor, 'handleSignal'>): Promise<void> {
    this.#forget();
    return next(input);
  }

  async startTimer(input: TimerInput, next: Next<WorkflowOutboundCallsInterceptor, 'startTimer'>): Promise<void> {
    const summary = input.options?.summary ?? `wait ${input.durationMs} ms`;
    const goOn = this.#story.wait(summary);
    try {
      await next({ ...input, options: { ...input.options, summary } });
    } finally {
      this.#forget();
      goOn();
    }
  }

  /** One promise for all of it: the SDK takes a stack trace for each that is made. */
  #step(
    { activityType, args }: { activityType: string; args: unknown[] },
    run: (summary: string) => Promise<unknown>,
    inTask = false,
  ): Promise<unknown> {
    this.#story.facts = collectFacts(this.#story.facts, args[0]);
    const summary = describeStep(this.#workflowType, activityType, this.#story.facts);
    const end = this.#story.begin(activityType, summary);
    return run(summary).then(
      (answer) => {
        const result = inTask ? this.#hear(answer) : answer;
        this.#collect(result);
        end('done', typeof result === 'string' ? result : '');
        return result;
      },
      (error: unknown) => {
        this.#forget();
        end('failed', messageOf(error));
        throw error;
      },
    );
  }

  /** Takes what the worker has added to the result of a step of this task. */
  #hear(answer: unknown): unknown {
    const { usable, result } = readNotice(answer);
    this.#told = usable;
    return result;
  }

  /** Whether an upsert that is made in this workflow task can't fail it, as far as anybody knows. */
  async #mayUpsert(): Promise<boolean> {
    if (this.#told === null) {
      // Also of a workflow that is cancelled; and no answer is no reason to fail it.
      const answer = await CancellationScope.nonCancellable(() => askUsable()).catch((error: unknown) => {
        // What is not on record as a failure of the step would go otherwise in a replay. One that is comes as an `ActivityFailure`
        // when it happens, and as what is within it when it is read from the history: as its time-out, for one.
        if (!(error instanceof TemporalFailure)) throw error;
        return false;
      });
      const { usable, result } = readNotice(answer);
      this.#told = usable && result === true;
    }
    return this.#told ?? false;
  }

  /** What was said is said of its own task alone. */
  #forget(): void {
    this.#told = null;
  }

  async #fail(error: unknown): Promise<void> {
    const outcome = isCancellation(error) ? 'cancelled' : (operationOutcomeOf(failureTypeOf(error)) ?? 'failed');
    const cause = error instanceof Error && error.cause !== undefined ? error.cause : error;
    await this.#end(
      { outcome, message: messageOf(error) },
      { failedStep: this.#story.failedStep ?? undefined, reason: failureTypeOf(cause) ?? undefined },
    );
  }

  async #end(
    ending: { outcome: string; message?: string },
    more: Partial<Record<SearchAttribute, string | undefined>> = {},
  ): Promise<void> {
    this.#story.end(ending);
    if (ending.message !== undefined) this.#show();
    // Counted once a run: the SDK leaves out what a replay counts again.
    metricMeter.createCounter('mooring_sagas', 'runs', 'Runs of workflows, by how they ended.').add(1, {
      saga: this.#workflowType,
      outcome: ending.outcome,
      failed_step: more.failedStep ?? '',
      reason: more.reason ?? '',
    });
    await this.#upsert({ ...attributesOf(this.#sure), ...more, outcome: ending.outcome });
  }

  #collect(value: unknown): void {
    this.#sure = collectFacts(this.#sure, value);
    this.#story.facts = collectFacts(this.#story.facts, value);
  }

  #show(): void {
    setCurrentDetails(this.#details as string);
  }

  /**
   * Writes what the server does not have yet: one event, in the workflow task that is under way. `null` where it is done, or there
   * is nothing to write; a promise where the worker is asked first.
   */
  #upsert(attributes: Partial<Record<SearchAttribute, string | undefined>>): Promise<void> | null {
    const known = this.#known;
    if (known === null) return null;
    const changed = (Object.entries(attributes) as [SearchAttribute, string | undefined][]).filter(
      (entry): entry is [SearchAttribute, string] => entry[1] !== undefined && known.get(entry[0]) !== entry[1],
    );
    if (changed.length === 0) return null;
    const write = (may: boolean) => {
      if (!may) return;
      for (const [attribute, value] of changed) known.set(attribute, value);
      this.#upsertedOnce = true;
      upsertSearchAttributes(
        changed.map(([attribute, value]): SearchAttributeUpdatePair => ({ key: keyOf(attribute), value })),
      );
    };
    if (this.#told === null) return this.#mayUpsert().then(write);
    write(this.#told);
    return null;
  }
}

function factsOf(known: ReadonlyMap<SearchAttribute, string>): SagaFacts {
  const fact = <Name extends keyof SagaFacts>(name: Name, attribute: SearchAttribute) => {
    const value = known.get(attribute);
    return value === undefined ? {} : { [name]: value };
  };
  return {
    ...fact('instanceId', 'instanceId'),
    ...fact('instanceName', 'instance'),
    ...fact('projectName', 'project'),
    ...fact('sledName', 'sled'),
    ...fact('sourceSledName', 'sourceSled'),
    ...fact('vmmId', 'vmm'),
  };
}

function attributesOf(facts: SagaFacts): Partial<Record<SearchAttribute, string | undefined>> {
  return { vmm: facts.vmmId, sled: facts.sledName };
}

/** The outcome that a result names: its `outcome`, a drain's `state`, or the first thing that an update did; `done` when it names none. */
function outcomeOf(result: unknown): string {
  const { outcome, state, last } = (result ?? {}) as { outcome?: unknown; state?: unknown; last?: unknown };
  if (typeof state === 'string') return state;
  // What follows the first words says where: that is in the facts.
  if (typeof outcome === 'string') return outcome.replace(/ sled ".*$/, '');
  return typeof last === 'string' ? (last.split(', then ')[0] ?? last) : 'done';
}

export function interceptors(): WorkflowInterceptors {
  const progress = new ProgressInterceptor();
  return { inbound: [progress], outbound: [progress] };
}
