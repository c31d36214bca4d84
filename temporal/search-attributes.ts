/** The workflows' search attributes on a Temporal namespace: registered where they are missing, used where they are there. */
import type { Connection } from '@temporalio/client';
import type { Logger } from 'pino';
import { OUTCOME_RUNNING, SEARCH_ATTRIBUTES } from '../model/search-attributes.ts';
import { waitUntil } from '../platform/host/child-process.ts';

/** `INDEXED_VALUE_TYPE_KEYWORD` of temporal.api.enums.v1. */
const KEYWORD = 2;
/** A server's front end reads a namespace again every ten seconds; some more, in milliseconds. */
const SETTLE_TIMEOUT_MS = 30_000;

/**
 * Makes sure that a namespace has the search attributes, and returns whether they can be used. Several processes may do so
 * at once. On a server where this client may not, or where an attribute of the name has another type, it says so in the
 * log, with what to do, and the workflows run without.
 */
export async function ensureSearchAttributes(connection: Connection, namespace: string, log: Logger): Promise<boolean> {
  const wanted = Object.values(SEARCH_ATTRIBUTES);
  try {
    const known = await readSearchAttributes(connection, namespace);
    const missing = wanted.filter((name) => known[name] === undefined);
    const mistyped = wanted.filter((name) => known[name] !== undefined && known[name] !== KEYWORD);
    if (mistyped.length > 0) throw new Error(`${mistyped.join(', ')} there is no keyword`);
    if (missing.length === 0) return true;
    await connection.operatorService
      .addSearchAttributes({
        namespace,
        searchAttributes: Object.fromEntries(missing.map((name) => [name, KEYWORD])),
      })
      .catch(async (error: unknown) => {
        // Another process may have been quicker.
        const now = await readSearchAttributes(connection, namespace);
        if (wanted.some((name) => now[name] === undefined)) throw error;
      });
    await waitUntil(
      () => canQuery(connection, namespace),
      'they were added, but the server did not take them into use in time',
      SETTLE_TIMEOUT_MS,
      200,
    );
    log.info({ namespace, added: missing }, 'search attributes registered');
    return true;
  } catch (error) {
    log.warn(
      { namespace, err: error },
      `workflows run without search attributes: they can't be registered (${error instanceof Error ? error.message : error}). Register ${wanted.join(', ')} as Keyword on the namespace (docs/web-ui.md) and start this process again`,
    );
    return false;
  }
}

async function readSearchAttributes(connection: Connection, namespace: string): Promise<Record<string, number>> {
  const { customAttributes } = await connection.operatorService.listSearchAttributes({ namespace });
  return { ...customAttributes };
}

async function canQuery(connection: Connection, namespace: string): Promise<boolean> {
  const query = Object.values(SEARCH_ATTRIBUTES)
    .map((name) => `${name} = "${OUTCOME_RUNNING}"`)
    .join(' AND ');
  return connection.workflowService.countWorkflowExecutions({ namespace, query }).then(
    () => true,
    () => false,
  );
}
