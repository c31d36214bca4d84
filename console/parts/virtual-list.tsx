import type { ComponentChildren } from 'preact';
import { useLayoutEffect, useRef, useState } from 'preact/hooks';
import { rowsInSight } from '../store/window.ts';

/**
 * A long list of which only what is in sight is drawn. `rowHeight` is in pixels, with what is between two rows; `columns` are as many
 * as have `minWidth` pixels of room.
 */
export function VirtualList<Item>({
  items,
  keyOf,
  rowHeight,
  minWidth,
  label,
  children,
}: {
  items: readonly Item[];
  keyOf: (item: Item) => string;
  rowHeight: number;
  minWidth: number;
  label: string;
  children: (item: Item) => ComponentChildren;
}) {
  const element = useRef<HTMLUListElement>(null);
  const [sight, setSight] = useState({ offset: 0, height: 800, width: 1000 });
  useLayoutEffect(() => {
    const look = () => {
      const box = element.current?.getBoundingClientRect();
      if (box === undefined) return;
      setSight((last) => {
        // By whole rows: scrolling within one draws nothing anew.
        const offset = Math.floor(-box.top / rowHeight) * rowHeight;
        const same = last.offset === offset && last.height === innerHeight && last.width === box.width;
        return same ? last : { offset, height: innerHeight, width: box.width };
      });
    };
    look();
    const sizes = new ResizeObserver(look);
    if (element.current !== null) sizes.observe(element.current);
    addEventListener('scroll', look, { passive: true });
    addEventListener('resize', look);
    return () => {
      sizes.disconnect();
      removeEventListener('scroll', look);
      removeEventListener('resize', look);
    };
  }, [rowHeight]);
  const columns = Math.max(1, Math.min(items.length, Math.floor(sight.width / minWidth)));
  const rowCount = Math.ceil(items.length / columns);
  const { first, end } = rowsInSight(sight.offset, sight.height + rowHeight, rowHeight, rowCount);
  const shown = items.slice(first * columns, end * columns);
  return (
    <ul
      ref={element}
      class="virtual"
      aria-label={label}
      style={{
        gridTemplateColumns: `repeat(${columns}, minmax(0, 1fr))`,
        gridAutoRows: `${rowHeight}px`,
        paddingTop: `${first * rowHeight}px`,
        paddingBottom: `${Math.max(0, rowCount - end) * rowHeight}px`,
      }}
    >
      {shown.map((item, index) => (
        <li key={keyOf(item)} aria-setsize={items.length} aria-posinset={first * columns + index + 1}>
          {children(item)}
        </li>
      ))}
    </ul>
  );
}
