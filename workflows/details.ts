import { setCurrentDetails } from '@temporalio/workflow';

/** One for each workflow: the SDK gives every workflow its own copy of each module's variables. */
let own: string | null = null;

/** Shows this Markdown as the workflow's current details from now on, in place of the list of its steps. */
export function tellDetails(markdown: string): void {
  own = markdown;
  setCurrentDetails(markdown);
}

/** What the workflow has told of itself; `null` when nothing. */
export function ownDetails(): string | null {
  return own;
}
