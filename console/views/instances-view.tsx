import { FilterBar } from '../parts/filter-bar.tsx';
import { InstanceRows } from '../parts/instance-rows.tsx';
import { picture } from '../store/fleet.ts';
import { byInterest } from '../store/picture.ts';

/** Every instance that passes the filter, as a list. */
export function InstancesView() {
  const instances = picture.value.columns.flatMap((column) => column.instances).sort(byInterest);
  return (
    <>
      <h1 class="for-readers">Instances</h1>
      <FilterBar />
      <InstanceRows instances={instances} label="Instances" />
    </>
  );
}
