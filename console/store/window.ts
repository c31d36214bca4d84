/** Which rows of a long list are in sight. Pure: what is not in sight is not drawn. */

/** The rows to draw, from `first` to before `end`. */
export interface Rows {
  readonly first: number;
  readonly end: number;
}

/**
 * The rows that are in sight, and one more on either side, so that the keyboard finds a next one. `offset` is how far the list's
 * top is above the top of what is in sight (negative: below it), all in pixels.
 */
export function rowsInSight(offset: number, sightHeight: number, rowHeight: number, rowCount: number): Rows {
  const first = Math.min(Math.max(0, Math.floor(offset / rowHeight) - 1), Math.max(0, rowCount - 1));
  const end = Math.min(rowCount, Math.ceil((offset + sightHeight) / rowHeight) + 1);
  return { first, end: Math.max(Math.min(rowCount, first + 1), end) };
}
