/**
 * What every workflow shows in the Web UI, without a line of its own: a summary on each activity and timer, its progress
 * as current details, and its search attributes. Bundled with the workflows (`workflowInterceptorModules`).
 *
 * Summaries and details are metadata: they add no event, and no history depends on them. An upsert is a command, and made
 * once, at the end; also when a step goes on as an activity, since it may then be looked for. It is made only in a run whose
 * first event carries the attributes: one on a server that doesn't know them runs without.
 */
import { defineSearchAttributeKey, SearchAttributeType, type SearchAttributeUpdatePair } from '@temporalio/common';
import {
  type ActivityInput,
  ContinueAsNew,
  isCancellation,
  type LocalActivityInput,
  metricMeter,
  type Next,
  setCurrentDetails,
  type TimerInput,
  upsertSearchAttributes,
  type WorkflowExecuteInput,
  type WorkflowInboundCallsInterceptor,
  type WorkflowInterceptors,
  type WorkflowOutboundCallsInterceptor,
  workflowInfo,
} from '@temporalio/workflow';
import { operationOutcomeOf } from '../model/failures.ts';
import { collectFacts, describeStep, type SagaFacts, SagaStory } from '../model/saga-story.ts';
import { SEARCH_ATTRIBUTES, type SearchAttribute } from '../model/search-attributes.ts';
import { failureTypeOf, messageOf } from './failures.ts';

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
   * The story as it is when somebody asks: making Markdown of it at each step would be work that nobody looks at. The SDK keeps
   * the details as they are, and makes JSON of them to answer a query.
   */
  readonly #details: unknown = { toJSON: () => this.#story.toMarkdown() };

  async execute(input: WorkflowExecuteInput, next: Next<WorkflowInboundCallsInterceptor, 'execute'>): Promise<unknown> {
    // Not in the constructor: the first event has not been read by then.
    const known = knownAttributes();
    if (known.has('outcome')) this.#known = known;
    this.#sure = factsOf(known);
    this.#story = new SagaStory(this.#workflowType, this.#sure);
    this.#collect(input.args[0]);
    // What the workflow sets as its details by itself counts for more than its steps.
    this.#show();
    try {
      const result = await next(input);
      this.#collect(result);
      this.#end({ outcome: outcomeOf(result) });
      return result;
    } catch (error) {
      if (!(error instanceof ContinueAsNew)) this.#fail(error);
      throw error;
    }
  }

  scheduleActivity(
    input: ActivityInput,
    next: Next<WorkflowOutboundCallsInterceptor, 'scheduleActivity'>,
  ): Promise<unknown> {
    if (!this.#upsertedOnce) this.#upsert(attributesOf(this.#sure));
    return this.#step(input, (summary) => next({ ...input, options: { summary, ...input.options } }));
  }

  scheduleLocalActivity(
    input: LocalActivityInput,
    next: Next<WorkflowOutboundCallsInterceptor, 'scheduleLocalActivity'>,
  ): Promise<unknown> {
    return this.#step(input, (summary) => next({ ...input, options: { summary, ...input.options } }));
  }

  async startTimer(input: TimerInput, next: Next<WorkflowOutboundCallsInterceptor, 'startTimer'>): Promise<void> {
    const summary = input.options?.summary ?? `wait ${input.durationMs} ms`;
    const goOn = this.#story.wait(summary);
    try {
      await next({ ...input, options: { ...input.options, summary } });
    } finally {
      goOn();
    }
  }

  /** One promise for all of it: the SDK takes a stack trace for each that is made. */
  #step(
    { activityType, args }: { activityType: string; args: unknown[] },
    run: (summary: string) => Promise<unknown>,
  ): Promise<unknown> {
    this.#story.facts = collectFacts(this.#story.facts, args[0]);
    const summary = describeStep(this.#workflowType, activityType, this.#story.facts);
    const end = this.#story.begin(activityType, summary);
    return run(summary).then(
      (result) => {
        this.#collect(result);
        end('done', typeof result === 'string' ? result : '');
        return result;
      },
      (error: unknown) => {
        end('failed', messageOf(error));
        throw error;
      },
    );
  }

  #fail(error: unknown): void {
    const outcome = isCancellation(error) ? 'cancelled' : (operationOutcomeOf(failureTypeOf(error)) ?? 'failed');
    const cause = error instanceof Error && error.cause !== undefined ? error.cause : error;
    this.#end(
      { outcome, message: messageOf(error) },
      { failedStep: this.#story.failedStep ?? undefined, reason: failureTypeOf(cause) ?? undefined },
    );
  }

  #end(
    ending: { outcome: string; message?: string },
    more: Partial<Record<SearchAttribute, string | undefined>> = {},
  ): void {
    this.#story.end(ending);
    if (ending.message !== undefined) this.#show();
    // Counted once a run: the SDK leaves out what a replay counts again.
    metricMeter.createCounter('mooring_sagas', 'runs', 'Runs of workflows, by how they ended.').add(1, {
      saga: this.#workflowType,
      outcome: ending.outcome,
      failed_step: more.failedStep ?? '',
      reason: more.reason ?? '',
    });
    this.#upsert({ ...attributesOf(this.#sure), ...more, outcome: ending.outcome });
  }

  #collect(value: unknown): void {
    this.#sure = collectFacts(this.#sure, value);
    this.#story.facts = collectFacts(this.#story.facts, value);
  }

  #show(): void {
    setCurrentDetails(this.#details as string);
  }

  /** Writes what the server does not have yet: one event, in the workflow task that is under way. */
  #upsert(attributes: Partial<Record<SearchAttribute, string | undefined>>): void {
    if (this.#known === null) return;
    const pairs: SearchAttributeUpdatePair[] = [];
    for (const [attribute, value] of Object.entries(attributes) as [SearchAttribute, string | undefined][]) {
      if (value === undefined || this.#known.get(attribute) === value) continue;
      this.#known.set(attribute, value);
      pairs.push({ key: keyOf(attribute), value });
    }
    if (pairs.length === 0) return;
    this.#upsertedOnce = true;
    upsertSearchAttributes(pairs);
  }
}

function knownAttributes(): Map<SearchAttribute, string> {
  const { typedSearchAttributes } = workflowInfo();
  const known = new Map<SearchAttribute, string>();
  for (const attribute of Object.keys(SEARCH_ATTRIBUTES) as SearchAttribute[]) {
    const value = typedSearchAttributes.get(keyOf(attribute));
    if (value !== undefined) known.set(attribute, value);
  }
  return known;
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
