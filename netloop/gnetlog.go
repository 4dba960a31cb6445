package netloop

import (
	"fmt"
	"log/slog"
)

// gnetLogger passes gnet's own messages to slog. gnet reports each start and stop at Info and stale
// events at Warn; here both matter only while debugging, so everything below Error goes to Debug.
type gnetLogger struct{ log *slog.Logger }

func (g gnetLogger) Debugf(format string, a ...any) {
	g.log.Debug("gnet", "text", fmt.Sprintf(format, a...))
}
func (g gnetLogger) Infof(format string, a ...any) {
	g.log.Debug("gnet", "text", fmt.Sprintf(format, a...))
}
func (g gnetLogger) Warnf(format string, a ...any) {
	g.log.Debug("gnet", "text", fmt.Sprintf(format, a...))
}
func (g gnetLogger) Errorf(format string, a ...any) {
	g.log.Error("gnet", "text", fmt.Sprintf(format, a...))
}

// Fatalf does not end the process: a library has no say in that.
func (g gnetLogger) Fatalf(format string, a ...any) {
	g.log.Error("gnet", "text", fmt.Sprintf(format, a...))
}
