package permit

import (
	"context"
	"fmt"

	"tandem/failover/internal/sockdiag"
)

// Cut is Permit's.
func (t *table) Cut(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("cut connections: %w", context.Cause(ctx))
	}
	if err := sockdiag.Destroy(ctx, t.cfg.Ports...); err != nil {
		return fmt.Errorf("cut connections: %w", err)
	}
	return nil
}
