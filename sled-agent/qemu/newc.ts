/** A file, a directory, or a symbolic link in an archive. */
export interface ArchiveEntry {
  readonly path: string;
  readonly mode: number;
  readonly data: Buffer;
}

const TRAILER: ArchiveEntry = { path: 'TRAILER!!!', mode: 0, data: Buffer.alloc(0) };

/** A directory. */
export function directory(path: string): ArchiveEntry {
  return { path, mode: 0o040755, data: Buffer.alloc(0) };
}

/** An executable file. */
export function executable(path: string, data: Buffer): ArchiveEntry {
  return { path, mode: 0o100755, data };
}

/**
 * Packs entries as the kernel unpacks them from an initramfs: cpio, format "newc". Source: the kernel's
 * Documentation/driver-api/early-userspace/buffer-format.rst.
 */
export function packNewc(entries: readonly ArchiveEntry[]): Buffer {
  const parts: Buffer[] = [];
  for (const [index, { path, mode, data }] of [...entries, TRAILER].entries()) {
    const name = Buffer.from(`${path}\0`);
    const fields = [index + 1, mode, 0, 0, 1, 0, data.length, 0, 0, 0, 0, name.length, 0];
    const head = Buffer.from(`070701${fields.map((field) => field.toString(16).padStart(8, '0')).join('')}`);
    parts.push(padded(Buffer.concat([head, name])), padded(data));
  }
  return Buffer.concat(parts);
}

function padded(bytes: Buffer): Buffer {
  const missing = (4 - (bytes.length % 4)) % 4;
  return missing === 0 ? bytes : Buffer.concat([bytes, Buffer.alloc(missing)]);
}
