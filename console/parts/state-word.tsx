import type { ExternalState } from '../../model/states.ts';
import { presentStates, type StateCounts } from '../store/picture.ts';
import { STATE_SIGNS } from '../words.ts';

/** A state by its sign, its colour and its word. */
export function StateWord({ state }: { state: ExternalState }) {
  return (
    <span class={`state shows-${state}`}>
      <span aria-hidden="true">{STATE_SIGNS[state]}</span> {state}
    </span>
  );
}

/** How many show each state, as words. */
export function StateCountsLine({ counts }: { counts: StateCounts }) {
  return (
    <span class="state-counts">
      {presentStates(counts).map(([state, count]) => (
        <span key={state} class={`state shows-${state}`}>
          <span aria-hidden="true">{STATE_SIGNS[state]}</span> {count.toLocaleString('en')} {state}
        </span>
      ))}
    </span>
  );
}

/** The same as a bar, for the eye alone: the words stand beside it. */
export function StateBar({ counts }: { counts: StateCounts }) {
  return (
    <div class="state-bar" aria-hidden="true">
      {presentStates(counts).map(([state, count]) => (
        <span key={state} class={`shows-${state}`} style={{ flexGrow: count }} />
      ))}
    </div>
  );
}
