#!/usr/bin/env node
// The launcher: TypeScript is read as it is.
import { register } from 'tsx/esm/api';

register();
await import('./mooring.ts');
