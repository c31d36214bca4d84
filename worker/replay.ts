/** Replays histories on the workflows as they are: the gate before a deploy. */
import { readdir, readFile } from 'node:fs/promises';
import type { Client } from '@temporalio/client';
import { Worker, type WorkflowBundleWithSourceMap } from '@temporalio/worker';
import { z } from 'zod';

const eventFields = z.looseObject({
  eventType: z.union([z.string(), z.number()]).optional(),
  workflowExecutionStartedEventAttributes: z
    .looseObject({ workflowType: z.looseObject({ name: z.string() }) })
    .nullish(),
});
const historyFields = z.looseObject({ events: z.array(eventFields).min(1) });

/** A history to replay, under the name that the result is known by. */
export interface NamedHistory {
  readonly name: string;
  readonly history: unknown;
}

export interface ReplayOutcome {
  readonly name: string;
  readonly workflowType: string;
  readonly events: number;
  /** Why it does not replay; `null` when it does. */
  readonly problem: string | null;
}

/** Reads every recorded history of a folder. Throws, with the file's name, when one is no history. */
export async function* readHistories(folder: string): AsyncGenerator<NamedHistory> {
  for (const file of (await readdir(folder)).filter((name) => name.endsWith('.json')).sort()) {
    let history: unknown;
    try {
      history = historyFields.parse(JSON.parse(await readFile(`${folder}/${file}`, 'utf8')));
    } catch (error) {
      throw new Error(`${file} is no workflow history: ${error instanceof Error ? error.message : error}`);
    }
    yield { name: file.replace(/\.json$/, ''), history };
  }
}

/** Reads the histories of the workflows that a query finds on a server, closed ones too. */
export async function* fetchHistories(client: Client, query: string): AsyncGenerator<NamedHistory> {
  for await (const { workflowId, runId } of client.workflow.list({ query })) {
    const history = await client.workflow.getHandle(workflowId, runId).fetchHistory();
    yield { name: `${workflowId} (${runId.slice(0, 8)})`, history };
  }
}

/**
 * Replays each history. One that does not replay is an outcome, not an error. Throws what `histories` throws, after the outcomes of
 * those that came before.
 */
export async function* replay(
  workflowBundle: WorkflowBundleWithSourceMap,
  histories: AsyncIterable<NamedHistory>,
): AsyncGenerator<ReplayOutcome> {
  const known: ReplayOutcome[] = [];
  let failure: { readonly error: unknown } | null = null;
  async function* handOver() {
    try {
      for await (const { name, history } of histories) {
        const { events } = historyFields.parse(history);
        known.push({
          name,
          workflowType: events[0]?.workflowExecutionStartedEventAttributes?.workflowType.name ?? 'unknown',
          events: events.length,
          problem: null,
        });
        yield { workflowId: name, history };
      }
    } catch (error) {
      // The SDK would wait for ever where a history before it did not replay.
      failure = { error };
    }
  }
  for await (const { workflowId, error } of Worker.runReplayHistories({ workflowBundle }, handOver())) {
    const about = known.find(({ name }) => name === workflowId);
    if (about !== undefined) yield { ...about, problem: error === undefined ? null : error.message };
  }
  const failed = failure as { readonly error: unknown } | null;
  if (failed !== null) throw failed.error;
}
