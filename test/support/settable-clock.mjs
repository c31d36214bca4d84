// Loaded into a process before all else (NODE_OPTIONS=--import): its wall clock is off by so many milliseconds as the file
// that MOORING_TEST_CLOCK names says, from a moment after it is written. Its monotonic clock and its timers are right.
import { readFileSync } from 'node:fs';

const RealDate = Date;
const file = process.env.MOORING_TEST_CLOCK;
let shiftMs = 0;
function look() {
  try {
    shiftMs = Number(readFileSync(file, 'utf8')) || 0;
  } catch {
    // Nobody has set it yet.
  }
}
if (file !== undefined) {
  look();
  setInterval(look, 100).unref();
}
globalThis.Date = class extends RealDate {
  constructor(...parts) {
    if (parts.length === 0) super(RealDate.now() + shiftMs);
    else super(...parts);
  }
  static now() {
    return RealDate.now() + shiftMs;
  }
};
