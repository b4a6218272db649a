package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"time"

	"tandem/agent/config"
	"tandem/blockrepl/disk"
)

const (
	// attachPatience is how long an agent that starts waits for its EBS volume: at boot
	// the attachment, and udev, may be later than we are. The unit allows a start 60 s.
	attachPatience = 30 * time.Second
	attachPoll     = 100 * time.Millisecond
)

// diskOptions is the volume of a config.
func diskOptions(cfg *config.Config) disk.Options {
	v := cfg.Volume
	// The serial number of an EBS volume's device is its id without the dash.
	return disk.Options{Path: v.Device, Size: v.Size, Metadata: v.Metadata, Serial: strings.Replace(v.EBS, "-", "", 1)}
}

// attached waits, for at most patience, until the EBS volume of the config is there. Any
// other volume is opened or it is not.
func attached(ctx context.Context, cfg *config.Config, patience time.Duration, log *slog.Logger) error {
	if cfg.Volume.EBS == "" {
		return nil
	}
	began := time.Now()
	for told := false; ; told = true {
		_, err := os.Stat(cfg.Volume.Device)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if time.Since(began) >= patience {
			waited := ""
			if patience > 0 {
				waited = fmt.Sprintf(" after %v", patience)
			}
			return fmt.Errorf("volume.device: the EBS volume %s is not attached to this instance, %s is not there%s: "+
				"attach it (aws ec2 attach-volume), or correct its id; an instance without NVMe makes no such link, name the device itself there",
				cfg.Volume.EBS, cfg.Volume.Device, waited)
		}
		if !told {
			log.Warn("the EBS volume is not attached yet", "volume", cfg.Volume.EBS, "path", cfg.Volume.Device, "patience", patience)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(attachPoll):
		}
	}
}
