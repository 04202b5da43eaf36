// Emphasis next to Chinese, Japanese and Korean.
//
// CommonMark decides by spaces and punctuation whether `**` opens or closes, and those languages put no spaces between
// words: in `**“强调”**后` nothing would be bold. A letter of theirs beside the mark therefore counts as a space would.
// See https://github.com/commonmark/commonmark-spec/issues/650 for the fault.

const CJK = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Hangul}\u3000-\u303f\uff00-\uffef]/u;

/** A markdown-it plugin. */
export function cjk(md) {
  class State extends md.inline.State {
    scanDelims(start, canSplitWord) {
      const result = super.scanDelims(start, canSplitWord);
      // An underscore inside a word, which `canSplitWord` forbids, stays one.
      if (!canSplitWord || (result.can_open && result.can_close)) return result;
      const before = start > 0 ? this.src[start - 1] : ' ';
      const after = this.src[start + result.length] ?? ' ';
      if (!CJK.test(before) && !CJK.test(after)) return result;
      return { ...result, can_open: !/\s/.test(after), can_close: !/\s/.test(before) };
    }
  }
  md.inline.State = State;
}
