import pc from 'picocolors';

const { createColors, isColorSupported } = pc;

/**
 * Colours for a terminal, and only there: picocolors alone also colours what goes to a file or a pipe when the environment
 * variable CI is set, where a program reads it. NO_COLOR and FORCE_COLOR have their usual meaning.
 */
export const colours = createColors(
  isColorSupported && (process.stdout.isTTY === true || Boolean(process.env.FORCE_COLOR)),
);
