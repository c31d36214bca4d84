import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    // Real servers on two cores: a time-out here means "stuck", not "slow".
    testTimeout: 120_000,
    hookTimeout: 120_000,
    // Much of it waits: for leases to lapse, for time-outs, for processes to come up. Two cores are busy with three.
    maxWorkers: 3,
    pool: 'forks',
    globalSetup: 'test/support/global-setup.ts',
  },
});
