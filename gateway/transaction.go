package gateway

import (
	"net/http"

	"kvstore/wire"
)

// answerTransaction tells what a transaction that was committed did and read.
func (s *Server) answerTransaction(w http.ResponseWriter, req *wire.Request, resp *wire.Response) {
	rev, _, _, _ := wire.DecodeResult(resp.Payload) // validResult has seen it
	sawRevision(w, rev)
	s.streamJSON(w, len(resp.Payload), true, func(j *jsonWriter) {
		j.open('{')
		j.field("committed")
		j.bool(true)
		j.field("results")
		s.results(j, req, resp.Payload)
		j.field("version")
		j.number(rev)
		j.close('}')
	})
}

// failGroup answers for a group that was not executed, or whose outcome is not known.
func failGroup(w http.ResponseWriter, req *wire.Request, resp *wire.Response) {
	p := problemOf(req.Op.IsWrite(), resp)
	if req.Op == wire.OpTxn && p.Applied == "no" {
		p.Committed = new(bool)
	}
	if len(p.Failed) != 0 {
		i := uint32(0)
		for it := range operationsOf(req) {
			for f := range p.Failed {
				if p.Failed[f].Operation == i {
					p.Failed[f].Key = string(it.Key)
				}
			}
			i++
		}
	}
	sendProblem(w, resp, &p)
}
