// Loaded into a process before all else (NODE_OPTIONS=--import): its wall clock jumps by hours, forward and backward, three
// times a second. With SIGUSR2 the process gets stuck: it turns its event loop no more.
const RealDate = Date;
const HOURS = 3_600_000;
let shiftMs = 0;
globalThis.Date = class extends RealDate {
  constructor(...parts) {
    if (parts.length === 0) super(RealDate.now() + shiftMs);
    else super(...parts);
  }
  static now() {
    return RealDate.now() + shiftMs;
  }
};
setInterval(() => {
  shiftMs = Math.round((Math.random() - 0.5) * 48 * HOURS);
}, 333).unref();
process.on('SIGUSR2', () => {
  for (;;);
});
