import type { Sled } from '../api/types.ts';
import { formatBytes } from '../words.ts';

/** How much of a sled's threads and memory is taken. */
export function SledRoom({ sled }: { sled: Sled }) {
  return (
    <>
      <RoomBar
        label="threads"
        used={sled.threads_reserved}
        of={sled.threads}
        words={`${sled.threads_reserved} of ${sled.threads}`}
      />
      <RoomBar
        label="memory"
        used={sled.memory_reserved}
        of={sled.memory}
        words={`${formatBytes(sled.memory_reserved)} of ${formatBytes(sled.memory)}`}
      />
    </>
  );
}

/** How much of something is taken, as a bar and in words. */
function RoomBar({ label, used, of, words }: { label: string; used: number; of: number; words: string }) {
  const share = of === 0 ? 0 : Math.min(1, used / of);
  return (
    <div class="room">
      <span class="room-label">{label}</span>
      {/* biome-ignore lint/a11y/useSemanticElements: a meter element looks different in each browser */}
      <div
        class={`room-bar${share > 0.9 ? ' is-full' : share > 0.7 ? ' is-high' : ''}`}
        role="meter"
        aria-label={label}
        aria-valuemin={0}
        aria-valuemax={of}
        aria-valuenow={used}
        aria-valuetext={words}
      >
        <span style={{ width: `${(share * 100).toFixed(1)}%` }} />
      </div>
      <span class="room-words">{words}</span>
    </div>
  );
}
