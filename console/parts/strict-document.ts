/**
 * For xterm.js, which styles what it draws by style elements and style attributes: a Content-Security-Policy without
 * `unsafe-inline` refuses both. The same rules, as constructed style sheets and by the style's own properties, it lets in.
 */

/** Has a style attribute that is set by a script come to what the script could have set by the style's properties. */
export function allowStyleAttributes(): void {
  const { setAttribute } = Element.prototype;
  Element.prototype.setAttribute = function (name, value) {
    if (name === 'style' && this instanceof HTMLElement) this.style.cssText = value;
    else setAttribute.call(this, name, value);
  };
}

/** Has style elements that are made while `make` runs be style sheets of the document. Throws what `make` throws. */
export function withStyleSheets(make: () => void): void {
  document.createElement = ((tag: string) =>
    tag === 'style' ? sheetElement() : original(tag)) as Document['createElement'];
  try {
    make();
  } finally {
    // The document's own is in its prototype.
    Reflect.deleteProperty(document, 'createElement');
  }
}

function original(tag: string): HTMLElement {
  return Document.prototype.createElement.call(document, tag);
}

/** An element whose text becomes a style sheet of the document for as long as it is not removed. */
function sheetElement(): HTMLElement {
  const element = original('span');
  element.hidden = true;
  const sheet = new CSSStyleSheet();
  document.adoptedStyleSheets.push(sheet);
  Object.defineProperty(element, 'textContent', { set: (rules: string) => sheet.replaceSync(rules) });
  const remove = element.remove.bind(element);
  element.remove = () => {
    document.adoptedStyleSheets = document.adoptedStyleSheets.filter((one) => one !== sheet);
    remove();
  };
  return element;
}
