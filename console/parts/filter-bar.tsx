import { EXTERNAL_STATES, type ExternalState } from '../../model/states.ts';
import { filter, picture, projectList } from '../store/fleet.ts';
import { NO_FILTER } from '../store/picture.ts';
import { counted } from '../words.ts';
import { StateCountsLine } from './state-word.tsx';

/** What one looks for: a part of a name, a project, a state; and what there is of it. */
export function FilterBar() {
  const { text, projectId, state } = filter.value;
  const { counts, shown, total } = picture.value;
  return (
    <search class="filter">
      <input
        type="search"
        aria-label="Name or id"
        placeholder="Name or id"
        value={text}
        onInput={(event) => (filter.value = { ...filter.peek(), text: event.currentTarget.value })}
      />
      <select
        aria-label="Project"
        value={projectId ?? ''}
        onChange={(event) => (filter.value = { ...filter.peek(), projectId: event.currentTarget.value || null })}
      >
        <option value="">every project</option>
        {projectList.value.map(({ id, name }) => (
          <option key={id} value={id}>
            {name}
          </option>
        ))}
      </select>
      <select
        aria-label="State"
        value={state ?? ''}
        onChange={(event) => {
          const chosen = EXTERNAL_STATES.find((one) => one === event.currentTarget.value);
          filter.value = { ...filter.peek(), state: (chosen ?? null) satisfies ExternalState | null };
        }}
      >
        <option value="">every state</option>
        {EXTERNAL_STATES.map((one) => (
          <option key={one} value={one}>
            {one}
          </option>
        ))}
      </select>
      {filter.value !== NO_FILTER && (
        <button type="button" class="quiet" onClick={() => (filter.value = NO_FILTER)}>
          Clear
        </button>
      )}
      <output class="filter-counts">
        {shown === total
          ? counted(total, 'instance')
          : `${shown.toLocaleString('en')} of ${counted(total, 'instance')}`}
        <StateCountsLine counts={counts} />
      </output>
    </search>
  );
}
