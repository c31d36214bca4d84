/**
 * What a person reads of a workflow in the Web UI: a summary of each step that names the VMM and the sled, and the saga's
 * progress as Markdown. Made from the declared steps and from what passes through the activities, so that a workflow gets
 * it by declaring its steps in `saga-steps.ts`, and nothing more.
 */
import { declaredSteps, type SagaStep, type SagaSteps } from './saga-steps.ts';

/** What is known of a workflow's subject. */
export interface SagaFacts {
  readonly instanceId?: string;
  readonly instanceName?: string;
  readonly projectName?: string;
  readonly vmmId?: string;
  readonly sledName?: string;
  readonly sourceSledName?: string;
}

const FACTS = ['instanceId', 'instanceName', 'projectName', 'vmmId', 'sledName', 'sourceSledName'] as const;

/**
 * Adds what an input or a result says of the subject: its fields of these names, a `sled` (by name, or an object that has
 * one), and the same of its `claim`.
 */
export function collectFacts(facts: SagaFacts, value: unknown): SagaFacts {
  if (typeof value !== 'object' || value === null) return facts;
  const fields = value as Readonly<Record<string, unknown>>;
  const learnt: Record<string, string> = {};
  for (const name of FACTS) {
    const field = fields[name];
    if (typeof field === 'string') learnt[name] = field;
  }
  const sled = typeof fields.sled === 'string' ? fields.sled : (fields.sled as { name?: unknown } | null)?.name;
  if (typeof sled === 'string') learnt.sledName = sled;
  return collectFacts({ ...facts, ...learnt }, fields.claim);
}

/** The first eight digits of an id: enough for a person. */
export function shortId(id: string): string {
  return id.slice(0, 8);
}

function stepsOf(workflowType: string): SagaSteps {
  return declaredSteps(workflowType) ?? { steps: [], compensations: [] };
}

function findStep(workflowType: string, activity: string): SagaStep | undefined {
  const { steps, compensations } = stepsOf(workflowType);
  return [...steps, ...compensations].find((step) => step.activity === activity);
}

/** One line on a step, for the Web UI: what it does, to which VMM, on which sled. */
export function describeStep(workflowType: string, activity: string, facts: SagaFacts): string {
  const step = findStep(workflowType, activity);
  if (step?.summary !== undefined) return fill(step.summary, facts);
  const title = step?.title ?? activity.replace(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`);
  const subject = [
    facts.instanceName,
    facts.vmmId === undefined ? undefined : `VMM ${shortId(facts.vmmId)}`,
    facts.sledName,
  ].filter((part) => part !== undefined);
  return subject.length === 0 ? title : `${title} (${subject.join(', ')})`;
}

function fill(template: string, facts: SagaFacts): string {
  const instance = facts.instanceName ?? (facts.instanceId === undefined ? undefined : shortId(facts.instanceId));
  return template
    .replaceAll('{vmm}', facts.vmmId === undefined ? 'the VMM' : `VMM ${shortId(facts.vmmId)}`)
    .replaceAll('{sled}', facts.sledName ?? 'its sled')
    .replaceAll('{instance}', instance ?? 'the instance');
}

type RunState = 'doing' | 'done' | 'failed';

interface StepRun {
  readonly activity: string;
  readonly summary: string;
  state: RunState;
  /** Why it failed, or what it came to. */
  note: string;
}

/** How a workflow ended. */
export interface SagaEnding {
  readonly outcome: string;
  /** What its failure says; absent when it succeeded. */
  readonly message?: string;
}

/** The progress of one workflow, as it happens. */
export class SagaStory {
  readonly #type: string;
  readonly #runs: StepRun[] = [];
  #ending: SagaEnding | null = null;
  #waiting: string | null = null;
  facts: SagaFacts;

  constructor(workflowType: string, facts: SagaFacts) {
    this.#type = workflowType;
    this.facts = facts;
  }

  /** A step begins. Returns what to call when it ends, with a note on it: what it came to, or why it failed. */
  begin(activity: string, summary: string): (state: 'done' | 'failed', note: string) => void {
    const run: StepRun = { activity, summary, state: 'doing', note: '' };
    this.#runs.push(run);
    return (state, note) => {
      run.state = state;
      run.note = note;
    };
  }

  /** The workflow waits for a while. Returns what to call when it goes on. */
  wait(summary: string): () => void {
    this.#waiting = summary;
    return () => {
      this.#waiting = null;
    };
  }

  end(ending: SagaEnding): void {
    this.#ending = ending;
  }

  /** The first step that failed for good; `null` when none has. */
  get failedStep(): string | null {
    return this.#failed()?.activity ?? null;
  }

  /** By each step's last run: what failed within the workflow task and was then done as an activity has not failed. */
  #failed(): StepRun | undefined {
    return [...new Map(this.#runs.map((run) => [run.activity, run])).values()].find((run) => run.state === 'failed');
  }

  /** The progress in Markdown: who it is about, how it stands, then what is done, being done and to do. */
  toMarkdown(): string {
    const { steps, compensations } = stepsOf(this.#type);
    const undoing = this.#undoing();
    const lines = [`**${this.#heading()}**`, '', this.#standing(undoing.length > 0), ''];
    lines.push(...this.#list(steps, undoing.length === 0 && this.#ending === null));
    const extra = this.#runs.filter((run) => findStep(this.#type, run.activity) === undefined);
    lines.push(...extra.map((run) => this.#line([run])));
    if (undoing.length > 0)
      lines.push('', 'Undoing, newest first:', '', ...this.#list(compensations, this.#ending === null));
    return lines.join('\n');
  }

  #undoing(): readonly StepRun[] {
    const { steps, compensations } = stepsOf(this.#type);
    // What was undone before the saga began anew, elsewhere, is over.
    const begun = this.#runs.findLastIndex((run) => run.activity === steps[0]?.activity);
    return this.#runs.slice(begun + 1).filter((run) => compensations.some((step) => step.activity === run.activity));
  }

  #heading(): string {
    const { instanceName, instanceId, projectName, vmmId, sledName, sourceSledName } = this.facts;
    const name = instanceName ?? (instanceId === undefined ? undefined : `instance ${shortId(instanceId)}`);
    const sleds = sourceSledName !== undefined && sledName !== undefined ? `${sourceSledName} → ${sledName}` : sledName;
    const parts = [
      name === undefined ? undefined : projectName === undefined ? name : `${projectName}/${name}`,
      sleds,
      vmmId === undefined ? undefined : `VMM ${shortId(vmmId)}`,
    ].filter((part) => part !== undefined);
    return parts.length === 0 ? this.#type : parts.join(' · ');
  }

  #standing(undoing: boolean): string {
    if (this.#ending !== null) {
      const { outcome, message } = this.#ending;
      const meaning = message ?? OUTCOMES[outcome];
      return meaning === undefined ? `Ended: **${outcome}**.` : `Ended: **${outcome}**: ${inline(meaning)}.`;
    }
    const failed = this.#failed();
    if (undoing && failed !== undefined)
      return `**Compensating**, because this failed: ${failed.summary}. ${inline(failed.note)}`;
    if (undoing) return '**Compensating.**';
    return this.#waiting === null ? 'Running.' : `Waiting: ${this.#waiting}.`;
  }

  #line(runs: readonly StepRun[]): string {
    const latest = runs.at(-1);
    if (latest === undefined) return '';
    const text = latest.state === 'doing' ? `**${latest.summary}**` : latest.summary;
    const count = runs.length > 1 ? ` (${runs.length} times)` : '';
    // The line on how it stands has the reason.
    const explainedBelow =
      latest.state === 'failed' && (this.#ending?.message !== undefined || this.#undoing().length > 0);
    const notes = explainedBelow
      ? ''
      : runs
          .map((run) => run.note)
          .filter((note) => note !== '')
          .join('; ');
    return `- ${MARKS[latest.state]} ${text}${count}${notes === '' ? '' : `: ${inline(notes)}`}`;
  }

  #list(steps: readonly SagaStep[], more: boolean): string[] {
    const last = Math.max(
      -1,
      ...steps.flatMap((step, index) => (this.#runs.some((run) => run.activity === step.activity) ? [index] : [])),
    );
    return steps.flatMap((step, index) => {
      const runs = this.#runs.filter((run) => run.activity === step.activity);
      if (runs.length > 0) return [this.#line(runs)];
      // A step that was passed over was not asked for.
      if (!more || index < last) return [];
      return [`- ○ ${step.sometimes ? `if need be: ${step.title}` : step.title}`];
    });
  }
}

/** What an outcome means, where its name alone does not say it. The cases of an update: section 6 of docs/design.md. */
const OUTCOMES: Readonly<Record<string, string>> = {
  started: 'the sled has accepted to run it',
  migrating: 'the destination has accepted to migrate it in',
  moved: 'the guest has arrived, and its new VMM is the active one',
  left: 'the guest has left its old VMM, and is awaited at the new one',
  lost: 'the guest had left its old VMM, and nobody has it',
  'not-moved': 'the guest stays where it was, and the migration is cleared',
  unknown: 'the sled of the target is to say where the guest is',
  unlinked: 'the instance names no VMM that is gone any more',
  settled: 'what VMMs that are gone still held is released',
};

/** Every font has these. */
const MARKS: Readonly<Record<RunState, string>> = { doing: '▶', done: '✓', failed: '✗' };

/** A message on one line; what Markdown would take for a mark-up is left as it is read. */
export function inline(message: string): string {
  return message.replace(/\s+/g, ' ').replace(/[*_<>`]/g, (mark) => `\\${mark}`);
}
