import { useEffect, useRef } from 'preact/hooks';
import uPlot from 'uplot';
import { theme } from '../theme.ts';

/** A line of a plot: its name, the colour by its name in the style sheet, its values, one a minute. */
export interface Line {
  readonly label: string;
  readonly colour: string;
  readonly values: readonly (number | null)[];
}

const HEIGHT = 180;

/**
 * A plot over time, for the eye; the same numbers stand in a table for whoever can't see it. `times` are in seconds, as uPlot has
 * them.
 */
export function Plot({
  title,
  times,
  lines,
  unit,
}: {
  title: string;
  times: readonly number[];
  lines: readonly Line[];
  unit: string;
}) {
  const element = useRef<HTMLDivElement>(null);
  const chosen = theme.value;
  useEffect(() => {
    const place = element.current;
    if (place === null) return;
    const style = getComputedStyle(document.documentElement);
    const colour = (name: string) => style.getPropertyValue(name).trim();
    const axis = {
      stroke: colour('--text-quiet'),
      grid: { stroke: colour('--line') },
      ticks: { stroke: colour('--line') },
    };
    const plot = new uPlot(
      {
        width: Math.max(200, place.clientWidth),
        height: HEIGHT,
        cursor: { y: false },
        scales: { y: { range: (_, __, most) => [0, Math.max(1, most * 1.1)] } },
        axes: [axis, { ...axis, size: 48, values: (_, marks) => marks.map((mark) => `${mark} ${unit}`.trim()) }],
        series: [
          {},
          ...lines.map((line, index) => ({
            label: line.label,
            stroke: colour(line.colour),
            width: 2,
            // No line is known by its colour alone.
            dash: index === 0 ? [] : [6, 2 + index * 3],
          })),
        ],
      },
      [[...times], ...lines.map(({ values }) => [...values])] as uPlot.AlignedData,
      place,
    );
    const sizes = new ResizeObserver(() => plot.setSize({ width: Math.max(200, place.clientWidth), height: HEIGHT }));
    sizes.observe(place);
    return () => {
      sizes.disconnect();
      plot.destroy();
    };
  }, [times, lines, unit, chosen]);
  return (
    <figure class="plot">
      <figcaption>{title}</figcaption>
      <div ref={element} aria-hidden="true" />
      <details>
        <summary>The numbers of {title}</summary>
        <table>
          <thead>
            <tr>
              <th scope="col">minute</th>
              {lines.map(({ label }) => (
                <th key={label} scope="col">
                  {label}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {times.map((time, index) => (
              <tr key={time}>
                <th scope="row">{new Date(time * 1000).toLocaleTimeString()}</th>
                {lines.map(({ label, values }) => (
                  <td key={label}>{values[index] ?? '–'}</td>
                ))}
              </tr>
            ))}
          </tbody>
        </table>
      </details>
    </figure>
  );
}
