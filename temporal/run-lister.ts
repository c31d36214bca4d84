/**
 * Looks up the runs of workflows by their ids. A namespace is allowed ten lists a second, from all its processes: so one is under
 * way at a time, and what many ask for meanwhile is asked in one.
 */
import { setTimeout as pause } from 'node:timers/promises';
import type { Client, WorkflowExecutionInfo } from '@temporalio/client';

/** How long it is from one list to the next, in milliseconds. Source: `frontend.namespaceRPS.visibility`, 10 by default. */
const EVERY_MS = 150;
/** How many ids one list may name: Temporal's queries have a limit of length. */
const MOST_IDS = 150;
/** How many runs are read for several who ask together: who has not enough by then is asked for alone. */
const MOST_TOGETHER = 2_000;
const PAGE = 1_000;

interface Asked {
  readonly ids: ReadonlySet<string>;
  readonly most: number;
  readonly runs: WorkflowExecutionInfo[];
  readonly alone: boolean;
  readonly answer: (runs: WorkflowExecutionInfo[]) => void;
  readonly fail: (error: unknown) => void;
}

/** One process's look-ups. */
export class RunLister {
  readonly #client: Client;
  readonly #queue: Asked[] = [];
  #isWorking = false;

  constructor(client: Client) {
    this.#client = client;
  }

  /** The newest runs, `most` at most, of the workflows with these ids. Throws when Temporal does not answer. */
  list(ids: readonly string[], most: number): Promise<WorkflowExecutionInfo[]> {
    const { promise, answer, fail } = pending();
    this.#queue.push({ ids: new Set(ids), most, runs: [], alone: false, answer, fail });
    if (!this.#isWorking) void this.#work();
    return promise;
  }

  async #work(): Promise<void> {
    this.#isWorking = true;
    // Who asks in the same moment is asked for together.
    await pause(0);
    while (this.#queue.length > 0) {
      const together = this.#take();
      const begun = performance.now();
      await this.#ask(together).catch((error: unknown) => {
        for (const { fail } of together) fail(error);
      });
      if (this.#queue.length > 0) await pause(Math.max(0, EVERY_MS - (performance.now() - begun)));
    }
    this.#isWorking = false;
  }

  #take(): Asked[] {
    const [first, ...rest] = this.#queue.splice(0);
    if (first === undefined) return [];
    const together = [first];
    let ids = first.ids.size;
    for (const asked of rest) {
      if (first.alone || asked.alone || ids + asked.ids.size > MOST_IDS) {
        this.#queue.push(asked);
        continue;
      }
      together.push(asked);
      ids += asked.ids.size;
    }
    return together;
  }

  async #ask(together: readonly Asked[]): Promise<void> {
    const ids = new Set(together.flatMap((asked) => [...asked.ids]));
    const query = `WorkflowId IN (${[...ids].map((id) => `"${id}"`).join(', ')})`;
    const pageSize = Math.min(PAGE, Math.max(...together.map(({ most }) => most)) * together.length);
    const isEnough = ({ runs, most }: Asked) => runs.length >= most;
    let read = 0;
    for await (const run of this.#client.workflow.list({ query, pageSize })) {
      for (const asked of together) if (asked.ids.has(run.workflowId) && !isEnough(asked)) asked.runs.push(run);
      read += 1;
      if (together.every(isEnough)) break;
      if (together.length > 1 && read === MOST_TOGETHER) {
        for (const asked of together) {
          if (isEnough(asked)) asked.answer(asked.runs);
          else this.#queue.push({ ...asked, runs: [], alone: true });
        }
        return;
      }
    }
    for (const { answer, runs } of together) answer(runs);
  }
}

/** A promise, and what settles it. */
function pending() {
  let answer: (runs: WorkflowExecutionInfo[]) => void = () => {};
  let fail: (error: unknown) => void = () => {};
  const promise = new Promise<WorkflowExecutionInfo[]>((resolve, reject) => {
    answer = resolve;
    fail = reject;
  });
  return { promise, answer, fail };
}
