import { setCurrentDetails } from '@temporalio/workflow';

/**
 * Where a workflow's own words are kept: on the global object, of which the SDK gives each workflow its own properties. A
 * variable of this module would be shared with every workflow of the worker (`preloadModules` in worker/worker.ts).
 */
declare global {
  var mooringDetails: string | undefined;
}

/** Shows this Markdown as the workflow's current details from now on, in place of the list of its steps. */
export function tellDetails(markdown: string): void {
  globalThis.mooringDetails = markdown;
  setCurrentDetails(markdown);
}

/** What the workflow has told of itself; `null` when nothing. */
export function ownDetails(): string | null {
  return globalThis.mooringDetails ?? null;
}
