// Server-sent events out of a stream of bytes, however the bytes are cut.
// In: a ReadableStream of an answer's body. Out: the data of each event, [DONE] excluded.
// Comments and fields other than data are passed over. Source: the HTML standard, section 9.2.

export async function* eventData(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = '';
  let lines = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
      let end;
      // a CR at the very end may be half of a CRLF
      while ((end = rest.search(/\r\n|\n|\r(?!$)/)) >= 0) {
        const line = rest.slice(0, end);
        rest = rest.slice(end + (rest.startsWith('\r\n', end) ? 2 : 1));
        if (line.startsWith('data:')) lines.push(line.slice(line[5] === ' ' ? 6 : 5));
        else if (line === '' && lines.length) {
          const data = lines.join('\n');
          lines = [];
          if (data === '[DONE]') return;
          yield data;
        }
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
