import type { Instance } from '../api/types.ts';
import { hrefOf } from '../routes.ts';
import { projectName, sledName } from '../store/fleet.ts';
import { counted, formatBytes } from '../words.ts';
import { openMenu } from './instance-menu.tsx';
import { StateWord } from './state-word.tsx';
import { VirtualList } from './virtual-list.tsx';

const ROW_HEIGHT = 44;
const NEVER_TWO = 100_000;

/** Instances as rows, of which those in sight are drawn. */
export function InstanceRows({ instances, label }: { instances: readonly Instance[]; label: string }) {
  return (
    <VirtualList<Instance>
      label={label}
      items={instances}
      keyOf={({ id }) => id}
      rowHeight={ROW_HEIGHT}
      minWidth={NEVER_TWO}
    >
      {(instance) => (
        <div class={`row shows-${instance.run_state}`} data-instance={instance.id}>
          <a href={hrefOf({ view: 'instance', id: instance.id })}>{instance.name}</a>
          <StateWord state={instance.run_state} />
          <span>
            {sledName(instance.sled_id)}
            {instance.migration_target_sled_id === null ? '' : ` → ${sledName(instance.migration_target_sled_id)}`}
          </span>
          <span class="row-more">{projectName(instance.project_id)}</span>
          <span class="row-more">
            {counted(instance.ncpus, 'thread')}, {formatBytes(instance.memory)}
          </span>
          <button
            type="button"
            class="quiet"
            aria-label={`Actions for ${instance.name}`}
            aria-haspopup="dialog"
            onClick={() => openMenu(instance.id)}
          >
            ⋯
          </button>
        </div>
      )}
    </VirtualList>
  );
}
