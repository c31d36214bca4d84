import { FilterBar } from '../parts/filter-bar.tsx';
import { SledColumn } from '../parts/sled-column.tsx';
import { VirtualList } from '../parts/virtual-list.tsx';
import { drag } from '../store/drag.ts';
import { picture } from '../store/fleet.ts';
import { type Column, tilesPerColumn } from '../store/picture.ts';

/** Heights of a column's parts, in pixels: those of styles/fleet.css. */
const COLUMN_HEIGHT = 206;
const TILE_HEIGHT = 70;
const COLUMN_WIDTH = 262;

/** The fleet: each sled a card, each instance a tile on it. */
export function FleetView() {
  const { columns } = picture.value;
  const tiles = tilesPerColumn(columns);
  return (
    <>
      <h1 class="for-readers">Fleet</h1>
      <FilterBar />
      <VirtualList<Column>
        label="Sleds"
        items={columns}
        keyOf={({ id }) => id ?? 'none'}
        rowHeight={COLUMN_HEIGHT + tiles * TILE_HEIGHT}
        minWidth={COLUMN_WIDTH}
      >
        {(column) => <SledColumn column={column} tiles={tiles} />}
      </VirtualList>
      <DraggedTile />
    </>
  );
}

/** What is dragged, under the pointer. */
function DraggedTile() {
  const dragged = drag.value;
  if (dragged === null) return null;
  return (
    <div class="dragged" aria-hidden="true" style={{ transform: `translate(${dragged.x + 8}px, ${dragged.y + 8}px)` }}>
      {dragged.instance.name}
    </div>
  );
}
