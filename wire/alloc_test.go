package wire

import "testing"

// The paths that every request takes allocate nothing: these assertions are the budget.
func TestHotPaths_AllocateNothing(t *testing.T) {
	var (
		buf     = make([]byte, 0, 64<<10)
		h       Header
		r       Request
		m       Mutation
		it      Item
		op      Op
		eh      EntryHeader
		page    ScanPage
		scan    ScanRequest
		meta    Meta
		respond = Response{Ext: AppendExtMeta(nil, &goldenMeta), Payload: goldenValue}
		frames  = map[string][]byte{}
	)
	for _, name := range []string{"get_request", "put_request", "put_plain", "delete_request", "batch_request", "txn_request", "multiget_request", "scan_request", "exists_request", "session_open_request", "cancel", "ping_request"} {
		frames[name] = readGolden(t, name)
	}
	entry := goldenEntry()
	putExt, putBody := goldenPutExt(), append(append(goldenPutExt(), goldenKey...), goldenValue...)
	token := Token{ID: 1, Op: OpGet}
	zs2, ok := AppendCompressed(nil, CodecS2, goldenText)
	if !ok {
		t.Fatal("the golden text does not compress")
	}
	paths := map[string]func() bool{
		"AppendFrame with checksum": func() bool {
			buf = AppendFrame(buf[:0], Header{Op: OpPut, Flags: FlagCRC, ID: 1}, putExt, goldenKey, goldenValue)
			return len(buf) > HeaderBytes
		},
		"BeginFrame and FinishFrame": func() bool {
			b, off := BeginFrame(buf[:0])
			buf = FinishFrame(append(b, goldenValue...), off, Header{Op: OpPut, Flags: FlagCRC})
			return len(buf) > HeaderBytes
		},
		"AppendResponse": func() bool {
			buf = AppendResponse(buf[:0], token, &respond, true, 12)
			return len(buf) > HeaderBytes
		},
		"elements of a put": func() bool {
			buf = AppendExtSession(buf[:0], 1, 2, 0)
			buf = AppendExtU64(buf, ExtTTL, 5)
			buf = AppendExtTag(buf, "name", "value")
			buf = AppendExtString(buf, ExtContentType, "text/plain")
			buf = AppendExtCondition(buf, ConditionExists, nil)
			buf = AppendExtVersions(buf, 1, 2)
			return len(buf) > 0
		},
		"AppendItem": func() bool {
			it := Item{Op: OpPut, Ext: putExt, Key: goldenKey, Value: goldenValue}
			buf = AppendItem(AppendGroupHeader(buf[:0], 0, 1), &it)
			return len(buf) > 0
		},
		"AppendScanRequest": func() bool {
			buf = AppendScanRequest(buf[:0], &ScanRequest{Prefix: goldenKey})
			return len(buf) > 0
		},
		"scan page": func() bool {
			b := append(buf[:0], make([]byte, ScanPageHeaderBytes)...)
			b = AppendItem(b, &Item{Op: OpGet, Key: goldenKey, Value: goldenValue})
			PutScanPageHeader(b, 1, 1, 0)
			buf = b
			return DecodeScanPage(b, &page) == nil
		},
		"entry": func() bool {
			o := Op{Op: OpPut, Namespace: 1, Session: 1, Seq: 2}
			buf = AppendOp(AppendEntryHeader(buf[:0]), &o, putBody, len(putExt), len(goldenKey))
			SealEntry(buf, &EntryHeader{Count: 1})
			return true
		},
		"DecodeEntry and NextOp": func() bool {
			ops, err := DecodeEntry(entry, &eh)
			for len(ops) > 0 && err == nil {
				ops, err = NextOp(ops, &op)
			}
			return err == nil
		},
		"DecodeMutation, NextCondition, AppendKept": func() bool {
			if DecodeMutation(OpPut, putExt, &m) != nil {
				return false
			}
			c, _, ok := NextCondition(putExt)
			buf = AppendKept(buf[:0], putExt)
			return ok && c.Kind == ConditionVersion && len(buf) == m.Kept
		},
		"DecodeScanRequest": func() bool {
			return DecodeScanRequest(frames["scan_request"][HeaderBytes:], &scan) == nil
		},
		"meta": func() bool {
			buf = AppendMeta(buf[:0], &goldenMeta)
			return DecodeMeta(buf, &meta) == nil
		},
		"s2": func() bool {
			b, ok := AppendCompressed(buf[:0], CodecS2, goldenText)
			return ok && len(b) > 0
		},
		"s2 back": func() bool {
			b, err := Decompress(buf[:0], CodecS2, zs2, FrameBodyBytesMax)
			return err == nil && len(b) == len(goldenText)
		},
	}
	for name, frame := range frames {
		paths["ParseRequest of "+name] = func() bool {
			if DecodeHeader(frame, &h) != nil || VerifyFrame(frame) != nil {
				return false
			}
			if ref := ParseRequest(&h, frame[HeaderBytes:], &r); ref != nil {
				return false
			}
			return r.Token().ID == h.ID
		}
	}
	paths["items of a result"] = func() bool {
		_, n, items, err := DecodeResult(frames["batch_answer"])
		for range n {
			if err == nil {
				items, err = NextItem(items, &it)
			}
		}
		return err == nil && len(items) == 0
	}
	frames["batch_answer"] = readGolden(t, "batch_answer")[HeaderBytes:]

	for name, path := range paths {
		if !path() {
			t.Errorf("%s: failed", name)
			continue
		}
		if n := testing.AllocsPerRun(200, func() { path() }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
